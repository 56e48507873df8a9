"""What is said of configs with all of the features: who wraps whom, and one line, with its place, for each thing that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunesmith.cli.app import app
from tunesmith.config import ConfigErrors, load_config
from tunesmith.session import NEEDS_ALL_TOKENS, assemble, remarks

from .conftest import Matrix
from .features import FEATURES, tables
from .stage import FAMILIES

ALL = frozenset(FEATURES)
CREPA = '[plugins.crepa]\nencoder = "ENCODER"\nimage_size = 56\n'
TREAD = "[[plugins.tread.routes]]\nratio = 0.5\n"


def written(matrix: Matrix, family: str, plugins: str) -> Path:
    """A config with these tables of plugins, which may name the encoder."""
    stage = matrix.stage_of(family)
    file = stage.folder / "asked.toml"
    file.write_text(stage.config(plugins.replace("ENCODER", str(matrix.encoder))))
    return file


def refusal(file: Path) -> str:
    """All that a config is refused with."""
    with pytest.raises(ConfigErrors) as raised:
        assemble(load_config(file))
    return str(raised.value)


def place(file: Path, text: str) -> str:
    """The file and line in which a text stands."""
    [line] = [number for number, line in enumerate(file.read_text().splitlines(), 1) if text in line]
    return f"{file}:{line}"


@pytest.mark.parametrize("family", FAMILIES)
def test_explain_shows_the_nesting_of_all_at_once(matrix: Matrix, family: str) -> None:
    done = CliRunner().invoke(app, ["explain", str(written(matrix, family, tables(ALL, matrix.encoder)))])
    assert done.exit_code == 0, done.output
    nesting = re.findall(r"(?m)^(\w+)\n((?:  .*\n)+)", done.stdout)
    assert {hook: [line.strip() for line in lines.splitlines()] for hook, lines in nesting} == {
        "load_model": ["crepa wraps", "tread wraps", "lora wraps", "core wraps", f"{family} provides"],
        "encode_batch": ["crepa wraps", "core wraps", f"{family} provides"],
        "compute_loss": ["scheduled_sampling wraps", "masked wraps", "crepa wraps", "core provides"],
        "on_step": ["crepa is called"],
        "validate": ["core is called"],
        "save_checkpoint": ["core is called", "lora is called"],
        "log": ["nobody"],
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_each_plugin_that_costs_says_what(matrix: Matrix, family: str) -> None:
    config = load_config(written(matrix, family, tables(ALL, matrix.encoder)))
    told = remarks(config, assemble(config))
    assert any(re.match(r"crepa: features of a sample of .* take [\d.]+ MB of the cache", one) for one in told)
    assert any(
        re.match(r"tread: of the tokens 50% bypass blocks 1 to 2 while training: 75% of the blocks' work is left", one) for one in told
    )
    assert any(re.match(r"scheduled_sampling: about [\d.]+x per step", one) for one in told)
    assert any(one.startswith("masked: ") for one in told) is (family == "wan_s2v")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_within_a_route_cannot_be_aligned(matrix: Matrix, family: str) -> None:
    file = written(matrix, family, f"{CREPA}block = 1\n{TREAD}start = 0\nend = -1\n")
    assert refusal(file) == (
        f"{place(file, '[plugins.crepa]')}: [plugins.crepa] crepa {NEEDS_ALL_TOKENS} of block 1, where tread leaves some out while "
        "training: let crepa read another block, or tread leave tokens out of others"
    )


@pytest.mark.parametrize("family", ["sana", "sana_video"])
def test_the_block_that_a_family_aligns_by_itself_is_refused_alike(matrix: Matrix, family: str) -> None:
    assert f"crepa {NEEDS_ALL_TOKENS} of block 2" in refusal(written(matrix, family, f"{CREPA}{TREAD}start = 0\nend = -1\n"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [0, 3])
def test_blocks_before_a_route_and_its_last_one_can_be_aligned(matrix: Matrix, family: str, block: int) -> None:
    file = written(matrix, family, f"{CREPA}block = {block}\n{TREAD}start = 1\nend = -1\n")
    assert {"crepa", "tread"} <= {plugin.name for plugin in assemble(load_config(file)).hooks.plugins}


@pytest.mark.parametrize(
    ("family", "setting", "told"),
    [
        (
            "sana_video",
            "noise.shift='none'",
            "sana_video refuses noise: it is trained at the noise levels of the checkpoint's own flow schedule",
        ),
        (
            "wan_s2v",
            "datasets.0.is_i2v=true",
            "wan_s2v cannot be trained with the first frame given; take it out: the first frame of a clip",
        ),
        ("sana", "datasets.1.kind='reference'", 'kind = "reference": sana takes no reference beside a caption'),
        ("sana_video", "datasets.1.kind='control'", 'kind = "control": sana_video takes no control beside a caption'),
    ],
)
def test_what_a_family_cannot_do_is_refused_with_its_reason(matrix: Matrix, family: str, setting: str, told: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        assemble(load_config(written(matrix, family, ""), [setting]))
    [line] = str(raised.value).splitlines()
    assert line.startswith(f"--set {setting}: ")
    assert told in line


MASKS = '[[datasets]]\nkind = "mask"\nof = "samples"\npath = "."\n'
WRONG = [
    ("[plugins.masked]\n", "[plugins.masked]", "no dataset has masks"),
    (f'{MASKS}[plugins.masked]\ntype = "hard"\n', 'type = "hard"', "segmentation"),
    (f"{MASKS}[plugins.masked]\nbackground = 2\n", "background = 2", "should be at most 1"),
    (f"{CREPA}block = 9\n", "block = 9", "block = 9: sana has the blocks 0 to 3"),
    (f"{CREPA}teacher_block = 3\n", "[plugins.crepa]", "goes with a teacher_block that comes after block 2"),
    ('[plugins.crepa]\nencoder = "/nowhere/dino"\n', 'encoder = "/nowhere/dino"', "/nowhere/dino"),
    ("[plugins.crepa]\nimage_size = 100\n", "image_size = 100", "a multiple of 14"),
    (f"{TREAD}start = 2\nend = 1\n", "start = 2", "starts at block 2, behind its end"),
    (f"{TREAD}start = 0\nend = 7\n", "end = 7", "has blocks 0 to 3"),
    (
        f"{TREAD}start = 0\nend = 1\n{TREAD}start = 1 # again\nend = 2\n",
        "# again",
        "starts at block 1, and the one before it ends at block 1",
    ),
    ("[plugins.tread]\n", "[plugins.tread]", "routes"),
    ("[plugins.scheduled_sampling]\nmax_steps = 21\n", "max_steps = 21", "sampling has 20 steps in all"),
    ("[plugins.scheduled_sampling]\nsolver = 'dpm'\n", "solver = 'dpm'", "euler"),
    (
        "[plugins.scheduled_sampling]\nprobability = 0.5\nramp = { steps = 9 }\n",
        "[plugins.scheduled_sampling]",
        "both `probability` and `ramp`",
    ),
]


@pytest.mark.parametrize(("plugins", "where", "told"), WRONG, ids=[told for *_, told in WRONG])
def test_a_wrong_setting_gets_its_one_line(matrix: Matrix, plugins: str, where: str, told: str) -> None:
    stage = matrix.stage_of("sana")
    file = stage.folder / "wrong.toml"
    plugins = plugins.replace("ENCODER", str(matrix.encoder))
    file.write_text(
        f'[run]\nsteps = 1\n[model]\nfamily = "sana"\npath = {str(stage.checkpoint)!r}\n'
        f'[[datasets]]\nname = "samples"\npath = {str(stage.folder / "samples")!r}\n{plugins}'
    )
    [line] = refusal(file).splitlines()
    assert line.startswith(f"{place(file, where)}: [")
    assert told in line

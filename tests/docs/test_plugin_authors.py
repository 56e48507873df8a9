"""docs/plugin-authors.md is true: its package is sound, its plugin keeps the contract, its test passes."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from tests.docs.blocks import Block, blocks
from tests.house import ROOT
from tests.matrix.stage import build
from tests.toyvideo import ToyVideoFamily
from tunesmith import Caption, Source
from tunesmith.cli.app import app
from tunesmith.config import ConfigErrors, load_config
from tunesmith.contract import complaints, implementations
from tunesmith.progress import Progress
from tunesmith.session import assemble, run
from tunesmith_sana import SanaFamily

PAGE = ROOT / "docs/plugin-authors.md"
CODE_LINES = 30


def titled(title: str) -> Block:
    return next(block for block in blocks(PAGE) if block.title == title)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of the page as files, importable."""
    for block in blocks(PAGE):
        if block.title:
            (tmp_path / block.title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.title).write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path / "src")
    monkeypatch.syspath_prepend(tmp_path / "tests")
    yield tmp_path
    for name in ("tunesmith_edges", "test_edges", "tunesmith_arrays", "tunesmith_smooth"):
        sys.modules.pop(name, None)


@pytest.fixture
def arrays(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures as arrays, where the page's data plugins are installed."""
    project: dict[str, Any] = tomllib.loads((package / "arrays/pyproject.toml").read_text())["project"]
    info = package / "arrays/src/tunesmith_arrays-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tunesmith-arrays\nVersion: 0.1.0\n")
    groups = ([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())] for group, points in project["entry-points"].items())
    (info / "entry_points.txt").write_text("\n".join(line for group in groups for line in group))
    monkeypatch.syspath_prepend(package / "arrays/src")
    folder = package / "data"
    (folder / "arrays").mkdir(parents=True)
    for number in range(3):
        np.save(folder / f"arrays/{number}.npy", np.full((512, 512, 3), 100 * number, dtype=np.uint8))
        (folder / f"arrays/{number}.txt").write_text(f"grey {number}")
    np.save(folder / "arrays/odd.npy", np.zeros((3, 4)))
    rows = [{"file": "arrays/0.npy", "caption": "black"}, {"file": "notes.txt"}, {"file": "../elsewhere.npy", "caption": "no"}]
    (folder / "album.json").write_text(json.dumps(rows))
    return folder


def planned(folder: Path, config: str) -> dict[str, Any]:
    """What becomes of the dataset that a part of a config describes, as `tune plan --json` tells it."""
    file = folder / "config.toml"
    file.write_text(f'[run]\nsteps = 1\n[model]\nfamily = "sana"\npath = "twin"\n{config}')
    SanaFamily.tiny(folder / "twin")
    done = CliRunner().invoke(app, ["plan", str(file), "--json"])
    assert done.exit_code == 0, done.output
    [dataset] = json.loads(done.stdout)["datasets"]
    return dict(dataset["funnel"])


def plugin_module(package: Path) -> ModuleType:
    module = importlib.import_module("tunesmith_edges")
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(package)
    return module


def test_a_loss_takes_30_lines() -> None:
    lines = titled("src/tunesmith_edges/__init__.py").text.splitlines()
    assert len([line for line in lines if line.strip()]) <= CODE_LINES


def test_the_entry_point_names_a_sound_plugin(package: Path) -> None:
    project: dict[str, Any] = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["tunesmith"]["edges"].split(":")
    assert module == plugin_module(package).__name__
    plugin = getattr(plugin_module(package), name)
    assert complaints(plugin) == []
    assert implementations(plugin) == {"compute_loss": True}


def test_the_settings_of_the_page_are_valid_and_mistakes_are_not(package: Path) -> None:
    settings = plugin_module(package).EdgesSettings
    excerpt = next(block for block in blocks(PAGE) if block.language == "toml" and block.title is None)
    assert settings(**tomllib.loads(excerpt.text)["plugins"]["edges"]).weight == 0.2
    with pytest.raises(ValidationError, match="greater than 0"):
        settings(weight=0)
    with pytest.raises(ValidationError, match="wieght"):
        settings(wieght=1)


def test_the_test_of_the_page_passes(package: Path) -> None:
    module = importlib.import_module("test_edges")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def test_the_test_of_the_page_can_fail(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("test_edges")
    monkeypatch.setattr(module.Edges, "compute_loss", lambda self, run, step: None)
    with pytest.raises(Exception, match=r"edges|Loss"):
        module.test_a_ramp_of_slope_one_costs_its_weight()


def lost(dataset: dict[str, Any]) -> list[list[str]]:
    """Examples of what was lost, by reason."""
    return [one["examples"] for one in dataset["losses"]]


def test_the_kind_and_the_source_of_the_page_are_planned_with(arrays: Path) -> None:
    kind, source = [block.text for block in blocks(PAGE) if block.language == "toml" and "[[datasets]]" in block.text]
    by_kind, by_source = planned(arrays, kind), planned(arrays, source)
    assert (by_kind["counts"]["found"], by_kind["counts"]["bucketed"], lost(by_kind)) == (4, 3, [["odd.npy"]])
    assert (by_source["counts"]["found"], by_source["counts"]["bucketed"]) == (3, 1)
    assert sorted(lost(by_source)) == [["../elsewhere.npy"], ["row 1: notes.txt"]]


def test_the_kind_of_the_page_decodes_what_the_crop_says(arrays: Path) -> None:
    module = importlib.import_module("tunesmith_arrays")
    family = ToyVideoFamily(ToyVideoFamily.tiny(arrays / "toy"))
    kind = module.ArrayKind(module.ArrayTable(kind="array", path=str(arrays / "arrays"), resolution=512), family)
    [piece] = kind.pieces(kind.probe(arrays / "arrays/1.npy"), "1.npy")
    crop, window = kind.part(piece, None)
    pixels = kind.load(Source("arrays", arrays / "arrays/1.npy", Caption("grey"), crop, window), "pixels")
    assert pixels.shape == (3, *reversed(crop.size))
    assert pixels.unique().tolist() == pytest.approx([100 / 127.5 - 1])


def test_the_command_of_the_page_is_one_of_tune(arrays: Path) -> None:
    done = CliRunner().invoke(app, ["arrays", "size", str(arrays / "arrays/0.npy")])
    assert (done.exit_code, done.stdout) == (0, "512x512\n")


@pytest.fixture
def smooth(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where the page's term on hidden states is installed."""
    info = package / "smooth/src/tunesmith_smooth-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tunesmith-smooth\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[tunesmith]\nsmooth = tunesmith_smooth:Smooth\n")
    monkeypatch.syspath_prepend(package / "smooth/src")
    return package


@pytest.mark.parametrize("family", ["sana", "wan_s2v"])
def test_the_term_on_hidden_states_trains_every_family(smooth: Path, family: str) -> None:
    stage = build(family, smooth / family)
    file = stage.folder / "config.toml"
    file.write_text(stage.config('[plugins.smooth]\nblock = 2\nweight = 0.5\nschedule = "linear"\nwarmup_steps = 1\n'))
    told = []
    for checkpointing in ("false", "true"):
        with Progress("quiet") as progress:
            made = run(load_config(file, [f"run.gradient_checkpointing={checkpointing}"]), "never", progress)
        events = map(json.loads, (made / "events.jsonl").read_text().splitlines())
        told.append([event for event in events if event["event"] == "step"])
    plain, again = told
    assert ["loss_smooth" in event for event in plain] == [False, True, True]
    assert [event["loss_smooth"] / event["smooth_difference"] for event in plain[1:]] == pytest.approx([0.5, 0.25])
    assert [event["loss"] for event in again] == [event["loss"] for event in plain]


@pytest.mark.parametrize(
    ("block", "told"),
    [(9, "[plugins.smooth] block 9: sana has 4 blocks"), (1, "smooth reads hidden states and needs all tokens of block 1")],
)
def test_the_term_refuses_blocks_that_it_cannot_read(smooth: Path, block: int, told: str) -> None:
    file = smooth / "config.toml"
    routes = "[plugins.tread]\nroutes = [{ ratio = 0.5, start = 1, end = 2 }]\n"
    file.write_text(
        f'[run]\nsteps = 1\n[model]\nfamily = "sana"\npath = "{SanaFamily.tiny(smooth / "twin")}"\n[[datasets]]\npath = "data"\n'
        f"[plugins.smooth]\nblock = {block}\n{routes}"
    )
    with pytest.raises(ConfigErrors) as raised:
        assemble(load_config(file))
    assert told in str(raised.value)

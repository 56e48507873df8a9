"""What plugins and families say beside their hooks, before a run starts: remarks, cautions, and blocks that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.tests.data.support import pictures
from tunesmith.config import ConfigErrors, load_config
from tunesmith.plan import make_plan
from tunesmith.session import NEEDS_ALL_TOKENS, assemble

FAMILY = """
from core.tests.data.support import Facts

class SixBlocks(Facts):
    num_blocks = 6
    cautions = {"narrow": "six blocks are few", "elsewhere": "is not in this run"}

class Nothing(Settings):
    pass

class Probe(FamilyPlugin[Nothing]):
    '''A family for tests.'''

    def family(self):
        return SixBlocks()

    @hookimpl
    def load_model(self, run, part):
        raise NotImplementedError

    @hookimpl
    def encode_batch(self, run, batch):
        raise NotImplementedError
"""
NARROWS = """
class Blocks(Settings):
    start: int = 0
    '''The first that has fewer tokens.'''
    end: int = 0
    '''The last, behind which all are back.'''

class Probe(Plugin[Blocks]):
    '''Leaves tokens out of some blocks.'''
    stage = Stage.ROUTE

    def narrows(self, family):
        return [range(self.settings.start, self.settings.end + 1)]

    def remarks(self, config, family):
        yield f"{family.num_blocks} blocks, {config.run.steps} steps"
"""
READS = """
class Blocks(Settings):
    blocks: list[int] = []
    '''Which are read.'''

class Probe(Plugin[Blocks]):
    '''Reads the output of some blocks.'''
    stage = Stage.OBJECTIVE

    def reads_blocks(self, family):
        return self.settings.blocks
"""
FAILS = "def remarks(self, config, family):\n        raise ZeroDivisionError"


@pytest.fixture(autouse=True)
def _installed(installation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installation.plugin("facts", FAMILY)
    installation.plugin("narrow", NARROWS)
    installation.plugin("read", READS)
    monkeypatch.chdir(tmp_path)


def written(plugins: str) -> Path:
    """A config whose first table of a plugin is on line 9."""
    file = Path("c.toml")
    file.write_text(
        f'[run]\nsteps = 10\ndevice = "cpu"\n[model]\nfamily = "facts"\n[[datasets]]\npath = "data"\ncaptions = "filename"\n{plugins}\n'
    )
    return file


def test_remarks_of_plugins_and_cautions_of_the_family_are_notes_of_the_plan(tmp_path):
    pictures(tmp_path / "data", 2)
    assert make_plan(load_config(written("[plugins.narrow]"))).notes[:2] == [
        "narrow: six blocks are few",
        "narrow: 6 blocks, 10 steps",
    ]
    assert make_plan(load_config(written("[plugins.read]"))).notes == []


def test_a_remark_that_fails_is_blamed_on_its_plugin(tmp_path, installation):
    installation.plain("careless", body=FAILS)
    pictures(tmp_path / "data", 2)
    with pytest.raises(ZeroDivisionError) as raised:
        make_plan(load_config(written("[plugins.careless]")))
    assert any("careless" in note and "remarks" in note for note in raised.value.__notes__)


def test_a_block_that_one_plugin_reads_whole_and_another_narrows_is_refused_with_both_names_and_the_line():
    config = load_config(written("[plugins.narrow]\nstart = 2\nend = 5\n[plugins.read]\nblocks = [1, 4, 5]"))
    with pytest.raises(ConfigErrors) as raised:
        assemble(config)
    assert str(raised.value) == (
        f"c.toml:12: [plugins.read] read {NEEDS_ALL_TOKENS} of block 4, where narrow leaves some out while training: "
        "let read read another block, or narrow leave tokens out of others"
    )


@pytest.mark.parametrize("blocks", ["[]", "[0, 1]", "[5]"])
def test_blocks_outside_of_what_is_narrowed_may_be_read(blocks):
    config = load_config(written(f"[plugins.narrow]\nstart = 2\nend = 5\n[plugins.read]\nblocks = {blocks}"))
    assert {plugin.name for plugin in assemble(config).hooks.plugins} >= {"narrow", "read"}


def test_two_plugins_may_read_the_same_block(installation):
    installation.plugin("watch", READS)
    config = load_config(written("[plugins.watch]\nblocks = [3]\n[plugins.read]\nblocks = [3]"))
    assert {plugin.name for plugin in assemble(config).hooks.plugins} >= {"watch", "read"}


@pytest.mark.parametrize("block", [-1, 6])
def test_a_block_that_the_family_lacks_cannot_be_read(block):
    with pytest.raises(ConfigErrors) as raised:
        assemble(load_config(written(f"[plugins.read]\nblocks = [{block}]")))
    assert str(raised.value) == f"c.toml:9: [plugins.read] read reads block {block}: facts has the blocks 0 to 5"


@pytest.mark.parametrize(("start", "end", "met"), [(2, 5, 2), (3, 3, 3), (5, 5, 5), (0, 2, 2)])
def test_two_plugins_cannot_leave_tokens_out_of_the_same_block(installation, start, end, met):
    installation.plugin("thin", NARROWS)
    config = load_config(written(f"[plugins.narrow]\nstart = 2\nend = 5\n[plugins.thin]\nstart = {start}\nend = {end}"))
    with pytest.raises(ConfigErrors) as raised:
        assemble(config)
    told = f"narrow and thin both leave tokens out of block {met}: let each have blocks of its own, or use one of them"
    assert str(raised.value) == f"c.toml:12: [plugins.thin] {told}"


def test_two_plugins_may_leave_tokens_out_of_different_blocks(installation):
    installation.plugin("thin", NARROWS)
    config = load_config(written("[plugins.narrow]\nstart = 2\nend = 5\n[plugins.thin]\nstart = 0\nend = 1"))
    assert {plugin.name for plugin in assemble(config).hooks.plugins} >= {"narrow", "thin"}


@pytest.mark.parametrize("asked", ["narrows", "reads_blocks"])
def test_what_fails_when_asked_about_blocks_is_blamed_on_its_plugin(installation, asked):
    installation.plain("careless", body=FAILS.replace("remarks(self, config, family)", f"{asked}(self, family)"))
    with pytest.raises(ZeroDivisionError) as raised:
        assemble(load_config(written("[plugins.careless]")))
    assert any("careless" in note and asked in note for note in raised.value.__notes__)


def test_more_blocks_between_two_checkpoints_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"gradient_checkpointing = 7: .* has 6 blocks, of which only the first"):
        assemble(load_config(written(""), ["run.gradient_checkpointing=7"]))
    assemble(load_config(written(""), ["run.gradient_checkpointing=6"]))

"""What a config may say of routes, and what is told of it before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config import ConfigErrors, load_config
from tunesmith.hooks import HookCaller
from tunesmith.session import assemble, remarks
from tunesmith_sana import SanaFamily
from tunesmith_tread import Tread

from .conftest import routes

NUM_BLOCKS = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twin of four blocks."""
    return SanaFamily.tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def write(checkpoint: Path, tmp_path: Path):
    """Write a config with some tables; the first line of these is line 6."""

    def written(tables: str) -> Path:
        file = tmp_path / "config.toml"
        file.write_text(f"[run]\nsteps = 1\n[model]\nfamily = 'sana'\npath = {str(checkpoint)!r}\n{tables}\n[[datasets]]\npath = 'none'\n")
        return file

    return written


def tread(hooks: HookCaller) -> Tread:
    [found] = [plugin for plugin in hooks.plugins if isinstance(plugin, Tread)]
    return found


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        (routes((0.5, 1, 4)), ["config.toml:9:", "end = 4", "blocks 0 to 3, or -4 to -1 from the end"]),
        (routes((0.5, -5, 1)), ["config.toml:8:", "routes[0].start = -5"]),
        (routes((0.5, -1, 1)), ["config.toml:8:", "routes[0] starts at block 3, behind its end, 1"]),
        (routes((0.5, 0, 1), (0.5, 1, 2)), ["config.toml:12:", "starts at block 1", "ends at block 1"]),
        (routes((0.5, 2, 3), (0.5, 0, 1)), ["config.toml:12:", "starts at block 0", "ends at block 3", "sort"]),
        (routes((1.0, 0, 1)), ["config.toml:7:", "ratio"]),
        (routes((-0.1, 0, 1)), ["config.toml:7:", "ratio"]),
        ("[plugins.tread]", ["config.toml:6:", "routes"]),
        ("[plugins.tread]\nroutes = []", ["config.toml:7:", "routes"]),
        (f"[plugins.tread]\nimportance = 1.5\n{routes((0.5, 0, 1))}", ["config.toml:7:", "importance"]),
        (f"{routes((0.5, 0, 1))}layers = 3", ["config.toml:10:", "layers"]),
    ],
)
def test_a_route_that_cannot_be_is_told_with_its_line(write, tables: str, told: list[str]) -> None:
    with pytest.raises(ConfigErrors) as error:
        assemble(load_config(write(tables)))
    for part in told:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("tables", "narrowed", "told"),
    [
        (
            routes((0.5, 1, 2)),
            [range(1, 3)],
            "50% bypass blocks 1 to 2 while training: 75% of the blocks' work is left, counted by tokens",
        ),
        (
            routes((0.5, 0, 0), (0.25, 1, -1)),
            [range(1), range(1, 4)],
            "50% bypass blocks 0 to 0 and 25% bypass blocks 1 to 3 while training: 69% of",
        ),
        (routes((0.0, 0, -1)), [], "of the tokens none bypass a block while training: 100% of"),
    ],
)
def test_the_plan_tells_what_work_is_left_and_which_blocks_lack_tokens(write, tables: str, narrowed: list[range], told: str) -> None:
    config = load_config(write(tables))
    cast = assemble(config)
    assert list(tread(cast.hooks).narrows(cast.family)) == narrowed
    [remark] = [one for one in remarks(config, cast) if one.startswith("tread")]
    assert told in remark

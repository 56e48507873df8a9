"""Hidden states of blocks come to the plugins that read them: those of the trained pass, once, with all tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith import Batch, NoSettings, Plugin, Run, Stage, Step, TrunkModule
from tunesmith.hidden import keep_hidden


class Pair(nn.Module):
    """A block that gives its hidden states as the second of two."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, hidden: Tensor) -> tuple[str, Tensor]:
        return "first", self.linear(hidden)


class Reader(Plugin[NoSettings]):
    """Reads blocks."""

    stage = Stage.OBJECTIVE
    blocks: tuple[int, ...] = ()

    def reads_blocks(self, family: Any) -> tuple[int, ...]:
        return self.blocks


def watched(*readers: tuple[int, ...]) -> tuple[Any, list[Pair]]:
    """A run of four such blocks, of which plugins read these."""
    blocks = [Pair() for _ in range(4)]
    plugins = [Reader(str(number), NoSettings()) for number in range(len(readers))]
    for plugin, read in zip(plugins, readers, strict=True):
        plugin.blocks = read
    entries = [TrunkModule(str(number), block, is_block=True, output=1) for number, block in enumerate(blocks)]
    run = SimpleNamespace(plugins=plugins, family=None, model=SimpleNamespace(blocks=entries), current=None)
    keep_hidden(cast(Run, run))
    return run, blocks


def step(mode: Any = "train") -> Step:
    empty = torch.zeros(1)
    return Step(0, 0, 0, mode, Batch(), empty, empty, empty, empty)


def test_what_comes_out_of_the_blocks_that_are_read_is_kept_once_with_its_gradient() -> None:
    run, blocks = watched((1,), (1, 3))
    run.current = step()
    hidden = torch.ones(2, 5, 3)
    for block in blocks:
        _, hidden = checkpoint(block, hidden, use_reentrant=False)
    kept = dict(run.current.hidden)
    assert kept.keys() == {1, 3}
    assert kept[3] is hidden
    kept[1].square().sum().backward()  # which calls the blocks again
    assert run.current.hidden[1] is kept[1]
    assert [block.linear.weight.grad is not None for block in blocks] == [True, True, False, False]


def test_nothing_is_kept_outside_of_training() -> None:
    run, blocks = watched((0,))
    blocks[0](torch.ones(1, 2, 3))
    run.current = step("eval")
    blocks[0](torch.ones(1, 2, 3))
    assert run.current.hidden == {}
    run.current = step()
    with torch.no_grad():
        blocks[0](torch.ones(1, 2, 3))
    assert run.current.hidden == {}

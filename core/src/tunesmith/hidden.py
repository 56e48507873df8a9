"""Hidden states between blocks, for the plugins that read them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .model import TrunkModule

if TYPE_CHECKING:
    from .run import Run


def keep_hidden(run: Run) -> None:
    """From now on put into `step.hidden` what comes out of the blocks that plugins read, in the pass whose gradient is computed.

    It is to be called when every plugin has put its hooks on the blocks, so that it comes after them.
    """
    for block in sorted({block for plugin in run.plugins for block in plugin.reads_blocks(run.family)}):
        entry = run.model.blocks[block]
        entry.module.register_forward_hook(partial(_keep, run, block, entry))


def _keep(run: Run, block: int, entry: TrunkModule, module: nn.Module, args: Any, output: Any) -> None:
    step = run.current
    if step is not None and step.mode == "train" and torch.is_grad_enabled():
        hidden = output if entry.output is None else output[entry.output]
        step.hidden.setdefault(block, hidden)  # checkpointing calls a block again; only what it gave first has a gradient

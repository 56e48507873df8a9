"""Activation memory: what is computed again in backward instead of kept, and where the rest lies."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from .model import Model
from .run import Run


def checkpoint_blocks(model: Model, every: int) -> None:
    """Compute every so many-th block, from the first on, again in backward, and what comes between two blocks like the one before it."""
    if every == 1:
        model.denoiser.enable_gradient_checkpointing()
        return
    number, recomputed = -1, set()
    for entry in model.trunk():
        number += entry.is_block
        if number % every == 0:
            recomputed.add(entry.module)

    def call(module: nn.Module, *arguments: Any) -> Any:
        if module not in recomputed:
            return module(*arguments)
        return checkpoint(module.__call__, *arguments, use_reentrant=False)

    model.denoiser.enable_gradient_checkpointing(call)


def saved_tensors(run: Run) -> AbstractContextManager[Any]:
    """While the loss is computed: `[run] activations = "cpu"` moves what backward will need off the device; on a CPU there is nothing to move."""
    if run.config.run.activations != "cpu":
        return nullcontext()
    if run.is_rehearsal:
        return saved_tensors_hooks(run.host_copy, run.device_copy)
    return nullcontext() if run.device.type == "cpu" else save_on_cpu(pin_memory=True)

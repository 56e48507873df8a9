"""Activation memory: what is computed again in backward instead of kept, and where the rest lies."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
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
    """While the loss is computed: `[run] activations = "cpu"` moves what backward will need off the device, but for weights.

    These are on the device whatever is done, and each copy would come back beside them. On a CPU there is nothing to move.
    """
    if run.config.run.activations != "cpu" or not (run.is_rehearsal or run.device.type != "cpu"):
        return nullcontext()
    moving: Any = saved_tensors_hooks(run.host_copy, run.device_copy) if run.is_rehearsal else save_on_cpu(pin_memory=True)

    def pack(tensor: Tensor) -> Tensor | tuple[Any]:
        return tensor if _is_weight(tensor) else (moving.pack_hook(tensor),)

    def unpack(packed: Tensor | tuple[Any]) -> Any:
        return packed if isinstance(packed, Tensor) else moving.unpack_hook(*packed)

    return saved_tensors_hooks(pack, unpack)


def _is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter, or one seen in another shape, as a linear layer multiplies by it.

    Not one that is trained and seen without its gradient, which may have changed before it is needed.
    """
    whole = tensor if tensor._base is None else tensor._base
    return isinstance(whole, nn.Parameter) and whole.requires_grad == tensor.requires_grad

"""Activation memory: what is computed again in backward instead of kept, and where the rest lies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
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
    A tensor comes back laid out as it was: kernels sum in the order of memory, and some are chosen by it.
    """
    if run.config.run.activations != "cpu" or not (run.is_rehearsal or run.device.type != "cpu"):
        return nullcontext()
    send = run.host_copy if run.is_rehearsal else pinned_copy

    def pack(tensor: Tensor) -> Tensor | _Moved:
        return tensor if _stays(tensor, run) else _Moved.by(send, tensor)

    def unpack(packed: Tensor | _Moved) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed.back(run.device_copy)

    return saved_tensors_hooks(pack, unpack)


def pinned_copy(tensor: Tensor) -> Tensor:
    """A tensor in memory of the machine from which a GPU copies without waiting; dense, with its dimensions in their order in memory."""
    tensor = tensor.resolve_conj().resolve_neg()  # which torch would do on the machine, before the copy has arrived
    home = torch.empty_like(tensor, device="cpu", pin_memory=torch.cuda.is_available())
    return home.copy_(tensor, non_blocking=home.is_pinned())


class _Moved(NamedTuple):
    """A tensor that has left the device, and how it lay there: of elements that several places share each is moved once."""

    home: Tensor
    shape: torch.Size
    strides: tuple[int, ...]
    has_gaps: bool

    @classmethod
    def by(cls, send: Callable[[Tensor], Tensor], tensor: Tensor) -> _Moved:
        once = tensor[tuple(slice(1 if stride == 0 else None) for stride in tensor.stride())]
        return cls(send(once), tensor.shape, tensor.stride(), _has_gaps(once))

    def back(self, bring: Callable[[Tensor], Tensor]) -> Tensor:
        """The tensor on the device."""
        there = bring(self.home)
        if self.has_gaps:
            there = torch.empty_strided(there.shape, self.strides, dtype=there.dtype, device=there.device).copy_(there)
        return there if there.shape == self.shape else there.expand(self.shape)


def _has_gaps(tensor: Tensor) -> bool:
    """Whether memory that is no part of a tensor lies between its elements, of which no two share a place."""
    found, following = False, 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride < following:
                return False
            found, following = found or stride > following, stride * size
    return found


def _stays(tensor: Tensor, run: Run) -> bool:
    """Whether a tensor is left where it is: a weight, or what is on the machine anyway, or is kept in no plain memory."""
    is_there = run.is_rehearsal or tensor.device.type == run.device.type
    return _is_weight(tensor) or not is_there or tensor.layout is not torch.strided


def _is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter, or one seen in another shape, as a linear layer multiplies by it.

    Not one that is trained and seen without its gradient, which may have changed before it is needed.
    """
    whole = tensor if tensor._base is None else tensor._base
    return isinstance(whole, nn.Parameter) and whole.requires_grad == tensor.requires_grad

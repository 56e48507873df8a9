"""Which feed-forwards can be computed in portions of the tokens, and how that is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import MethodType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith import InputError, TrunkModule


def feed_forwards(trunk: Sequence[TrunkModule]) -> list[nn.Module]:
    """Every feed-forward of a trunk, once.

    InputError where there is none, and where one has a convolution, which mixes tokens of different portions.
    """
    found: dict[nn.Module, None] = {}
    for entry in trunk:
        convolutions = {one.module for one in entry.convolutions}
        for module in entry.feed_forward:
            if any(inner in convolutions or isinstance(inner, nn.Conv1d | nn.Conv2d | nn.Conv3d) for inner in module.modules()):
                raise InputError(
                    f"the feed-forward of {entry.name} is a {type(module).__name__}, whose convolutions look at neighbouring tokens: it "
                    "cannot be computed in portions; take [plugins.chunked_feed_forward] out"
                )
            found[module] = None
    if not found:
        raise InputError("this model names no feed-forward that could be computed in portions; take [plugins.chunked_feed_forward] out")
    return list(found)


def compute_in_portions(module: nn.Module, chunks: int) -> None:
    """Have a module's `forward` take that many portions of its tokens; its hooks, weights and names stay what they are."""
    forward = module.forward
    if isinstance(forward, MethodType) and forward.__self__ is module:
        module.forward = MethodType(_chunked(forward.__func__, chunks), module)
    else:  # another plugin has replaced it
        module.forward = partial(in_portions, forward, chunks)


def in_portions(forward: Callable[[Tensor], Tensor], chunks: int, tokens: Tensor) -> Tensor:
    """What `forward` makes of tokens [..., T, D], of up to so many portions one after the other.

    For gradients each portion is computed again in backward; otherwise its hidden states would all be kept until then, and
    nothing were saved.
    """
    portions = tokens.chunk(chunks, dim=-2)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(partial(_of_one_layout, forward), portion, use_reentrant=False) for portion in portions], dim=-2)
    return torch.cat([forward(portion) for portion in portions], dim=-2)


def _of_one_layout(forward: Callable[[Tensor], Tensor], portion: Tensor) -> Tensor:
    """What `forward` makes of a portion, which may come back from where activations are kept without the gaps between its rows.

    A layer keeps other tensors for another layout, and recomputing must meet those of the first time.
    """
    return forward(portion.contiguous())


@cache
def _chunked(forward: Callable[[nn.Module, Tensor], Tensor], chunks: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """A method for all modules of a class: where blocks are compiled, one function lets them share a graph."""
    return lambda module, tokens: in_portions(partial(forward, module), chunks, tokens)

"""A router for tests: sends chosen tokens through a range of the trunk, knowing no more of a family than its `TrunkModule`s tell.

It stands for every feature that lets a block see fewer tokens, and so proves that the description of the trunk is complete.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith import GridConvolution, TokenGrid, TrunkModule, take_rows


@contextmanager
def routed(trunk: Sequence[TrunkModule], kept: Tensor, grid: TokenGrid) -> Iterator[None]:
    """Within, these modules see only the kept tokens, [B, K] sorted indices of the grid's tokens; the others pass by unchanged.

    Tokens beyond the grid, which are given conditions, are kept too. Convolutions see the full grid, with 0 for what is not kept.
    """
    with ExitStack() as stack:
        for entry in trunk:
            stack.enter_context(_routed_module(entry, kept, grid))
        yield


@contextmanager
def _routed_module(entry: TrunkModule, kept: Tensor, grid: TokenGrid) -> Iterator[None]:
    signature = inspect.signature(entry.module.forward)
    whole: list[Tensor] = []
    chosen: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = signature.bind(*args, **kwargs).arguments
        hidden = given[entry.hidden]
        beyond = torch.arange(grid.tokens, hidden.shape[1], device=hidden.device).expand(len(kept), -1)
        indices = torch.cat([kept, beyond], dim=1)
        whole.append(hidden)
        chosen.append(indices)
        given[entry.hidden] = take_rows(hidden, indices)
        for name, take in entry.per_token.items():
            if given.get(name) is not None:
                given[name] = take(given[name], indices)
        for name in entry.grid:
            given[name] = kept.shape[1] if name == entry.grid[-1] else 1
        return (), given

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        hidden, indices = whole.pop(), chosen.pop()
        tokens = output if entry.output is None else output[entry.output]
        full = hidden.scatter(1, indices[..., None].expand(-1, -1, hidden.shape[-1]), tokens.to(hidden.dtype))
        if entry.output is None:
            return full
        return (*output[: entry.output], full, *output[entry.output + 1 :])

    with ExitStack() as stack:
        stack.callback(entry.module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(entry.module.register_forward_hook(after).remove)
        for convolution in entry.convolutions:
            stack.enter_context(_on_full_grid(convolution, kept, grid))
        yield


@contextmanager
def _on_full_grid(convolution: GridConvolution, kept: Tensor, grid: TokenGrid) -> Iterator[None]:
    """The convolution is given [B, C, 1.., K], and sees the whole grid in its layout."""
    layout = convolution.layout

    def before(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        states = args[0].flatten(2)  # [B, C, K]
        full = states.new_zeros((*states.shape[:2], grid.tokens)).scatter(2, _at(states), states)
        return layout.pack(full.unflatten(2, (grid.frames, grid.height, grid.width)))

    def after(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        full = layout.unpack(output, grid).flatten(2)
        taken = full.gather(2, _at(full))
        return taken.reshape(*taken.shape[:2], *[1] * (output.ndim - 3), -1)

    def _at(states: Tensor) -> Tensor:
        return kept[:, None].expand(-1, states.shape[1], -1)

    handles = convolution.module.register_forward_pre_hook(before), convolution.module.register_forward_hook(after)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

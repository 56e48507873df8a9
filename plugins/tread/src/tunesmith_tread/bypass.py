"""How tokens bypass a stretch of a model's trunk, whatever the family: by what its `TrunkModule`s tell."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor

from tunesmith import GridLayout, TokenGrid, TrunkModule


class Routed:
    """What one forward sends through a stretch: the kept tokens of the grid, and all tokens as they came.

    `choose` is given all tokens [B, T, D] before the first module and answers with indices [B, K] of the grid's tokens; it
    is asked once. Tokens beyond the grid, which are given conditions, are kept too.
    """

    def __init__(self, grid: TokenGrid, choose: Callable[[Tensor], Tensor]) -> None:
        self.grid = grid
        self.choose = choose
        self.whole: Tensor | None = None

    def narrow(self, entry: TrunkModule, signature: inspect.Signature, enters: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments of a module for the kept tokens alone; those of the one that `enters` the stretch still hold all of them."""
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        if enters:
            given[entry.hidden] = self._entering(given[entry.hidden])
        for name, take in entry.per_token.items():
            if given.get(name) is not None:
                given[name] = take(given[name], self.indices)
        for name in entry.grid:
            given[name] = self.kept.shape[1] if name == entry.grid[-1] else 1
        return bound.args, bound.kwargs

    def widen(self, entry: TrunkModule, args: Any, output: Any) -> Any:
        """The output of the last module with all tokens, in its own precision: those that went through, and the others as they came."""
        tokens = output if entry.output is None else output[entry.output]
        whole = cast(Tensor, self.whole).to(tokens.dtype)
        full = whole.flatten(0, 1).index_copy(0, self.rows, tokens.flatten(0, 1)).view_as(whole)
        return full if entry.output is None else (*output[: entry.output], full, *output[entry.output + 1 :])

    def to_grid(self, layout: GridLayout, args: tuple[Tensor]) -> Tensor:
        """What a convolution is given, [B, C, 1.., K], on the full grid in its layout, with 0 for what is not kept."""
        tokens = args[0].flatten(2).transpose(1, 2)  # [B, K, C]
        full = _moved(tokens.flatten(0, 1), self.cells, len(tokens) * self.grid.tokens)
        return full.view(-1, *layout.sides(self.grid), full.shape[1]).movedim(-1, 1)

    def from_grid(self, layout: GridLayout, args: Any, output: Tensor) -> Tensor:
        """The kept ones of what it makes of the full grid, [B, C, 1.., K]."""
        taken = _moved(output.movedim(1, -1).flatten(0, -2), self.cells)
        return taken.view(len(self.kept), *[1] * (output.ndim - 3), -1, taken.shape[1]).movedim(-1, 1)

    def _entering(self, hidden: Tensor) -> Tensor:
        if self.whole is None:
            with torch.no_grad():
                self.kept = self.choose(hidden)  # [B, K]
        self.whole = hidden
        beyond = torch.arange(self.grid.tokens, hidden.shape[1], device=hidden.device).expand(len(hidden), -1)
        self.indices = torch.cat([self.kept, beyond], dim=1)  # [B, K + conditions]
        self.rows, self.cells = _rows(self.indices, hidden.shape[1]), _rows(self.kept, self.grid.tokens)
        return _moved(hidden.flatten(0, 1), self.rows).view(*self.indices.shape, -1)


def bypass(stretch: Sequence[TrunkModule], now: Callable[[], Routed | None]) -> ExitStack:
    """Let only kept tokens through these modules, which follow each other, whenever `now` tells which; closing the result ends it."""

    def hook(change: Callable[..., Any], *fixed: object) -> Callable[..., Any]:
        return lambda module, *given: None if (routed := now()) is None else change(routed, *fixed, *given)

    ending = ExitStack()
    for entry in stretch:
        narrow = hook(Routed.narrow, entry, inspect.signature(entry.module.forward), entry is stretch[0])
        ending.callback(entry.module.register_forward_pre_hook(narrow, with_kwargs=True).remove)
        for one in entry.convolutions:
            ending.callback(one.module.register_forward_pre_hook(hook(Routed.to_grid, one.layout)).remove)
            ending.callback(one.module.register_forward_hook(hook(Routed.from_grid, one.layout)).remove)
    ending.callback(stretch[-1].module.register_forward_hook(hook(Routed.widen, stretch[-1])).remove)
    return ending


def _rows(indices: Tensor, tokens: int) -> Tensor:
    """Indices [B, K] of a sample's tokens as those of rows [B * tokens, C]."""
    return (indices + tokens * torch.arange(len(indices), device=indices.device)[:, None]).flatten()


def _moved(states: Tensor, rows: Tensor, size: int | None = None) -> Tensor:
    """These `rows` of states [N, C], each once; with a `size` the inverse: states at these rows of [size, C], 0 elsewhere."""
    return cast(Tensor, _Move.apply(states, rows, size))  # type: ignore[no-untyped-call]


class _Move(torch.autograd.Function):
    """Each direction is the gradient of the other; torch's own would add up what is written once, which takes several times as long."""

    @staticmethod
    def forward(context: Any, states: Tensor, rows: Tensor, size: int | None) -> Tensor:
        context.save_for_backward(rows)
        context.size = len(states) if size is None else None
        return states.index_select(0, rows) if size is None else states.new_zeros(size, states.shape[1]).index_copy_(0, rows, states)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _moved(gradients[0], context.saved_tensors[0], context.size), None, None

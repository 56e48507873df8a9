"""The average itself: tensors in fp32 that follow weights of any precision, and can take their place for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """An exponential moving average of named weights, in fp32; `put` moves a tensor to where it lies."""

    def __init__(self, weights: Mapping[str, Tensor], put: Callable[[Tensor], Tensor]) -> None:
        self._put = put
        self.values = {name: put(weight.detach().to(torch.float32, copy=True)) for name, weight in weights.items()}

    @torch.no_grad()
    def follow(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """average = decay * average + (1 - decay) * weights; kernels take all tensors at once."""
        averages = [self.values[name] for name in weights]
        current = [weight.detach().to(average) for weight, average in zip(weights.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, current, 1 - decay)

    @contextmanager
    def in_place_of(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The weights have the values of the average within the context, and exactly their own again after it."""
        kept = {name: self._put(weight.detach().clone()) for name, weight in weights.items()}
        try:
            _copy(self.values, weights)
            yield
        finally:
            _copy(kept, weights)

    def take_up(self, values: Mapping[str, Tensor]) -> None:
        """Go on from saved values; ValueError if they are of other weights."""
        if {name: value.shape for name, value in values.items()} != {name: value.shape for name, value in self.values.items()}:
            odd = sorted(values.keys() ^ self.values.keys()) or ["a shape"]
            raise ValueError(f"the saved average is of other weights than are trained now: {odd[0]} is in only one of them")
        _copy(values, self.values)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> None:
    for name, target in to.items():
        target.copy_(values[name])

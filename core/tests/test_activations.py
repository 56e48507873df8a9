"""Which blocks are computed again in backward, and that the numbers stay."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith import Model, TrunkModule
from tunesmith.activations import checkpoint_blocks


class Counted(nn.Module):
    """A layer that counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.linear(hidden).tanh()
        return out


class Trunk(nn.Module):
    """Five blocks, with something between the second and the third, called as diffusers does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Counted() for _ in range(6)])
        self.call: Any = lambda module, *arguments: module(*arguments)

    def enable_gradient_checkpointing(self, call: Any = None) -> None:
        self.call = call or partial(checkpoint, use_reentrant=False)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = self.call(layer, hidden)
        return hidden


class Loaded:
    """As much of a model as is asked for."""

    def __init__(self) -> None:
        self.denoiser = Trunk()

    def trunk(self) -> list[TrunkModule]:
        return [TrunkModule(str(number), layer, is_block=number != 2) for number, layer in enumerate(self.denoiser.layers)]


def gradients(every: int) -> tuple[list[int], list[Tensor]]:
    model = Loaded()
    if every:
        checkpoint_blocks(cast(Model, model), every)
    model.denoiser(torch.linspace(-1, 1, 8).reshape(2, 4)).square().sum().backward()
    calls = [cast(Counted, layer).calls for layer in model.denoiser.layers]
    return calls, [cast(Tensor, parameter.grad) for parameter in model.denoiser.parameters()]


@pytest.mark.parametrize(
    ("every", "calls"), [(1, [2, 2, 2, 2, 2, 2]), (2, [2, 1, 1, 2, 1, 2]), (3, [2, 1, 1, 1, 2, 1]), (9, [2, 1, 1, 1, 1, 1])]
)
def test_every_so_many_th_block_is_computed_again_and_gradients_stay(every: int, calls: list[int]) -> None:
    plain_calls, plain = gradients(0)
    assert plain_calls == [1] * 6
    found, again = gradients(every)
    assert found == calls
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))

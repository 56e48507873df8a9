"""Groups where memory is counted and not taken: what is at home costs nothing, what visits the device costs what it takes."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tunesmith import Run
from tunesmith.live import LiveTensors
from tunesmith_group_offload.encoders import count_visits, offload_encoder
from tunesmith_group_offload.groups import Group
from tunesmith_group_offload.schedule import Schedule, Stretch

WIDTH, NUM_BLOCKS = 512, 4
BLOCK = 4 * WIDTH * WIDTH
"""Bytes of the weight of a block."""
SMALL = BLOCK // 20
"""More bytes than all activations take."""


def rehearsed() -> Run:
    """As much of a run that is rehearsed as moves things."""
    run = SimpleNamespace(device=torch.device("cpu"), is_rehearsal=True)
    moved = cast(Run, run)
    run.host_copy, run.device_copy = partial(Run.host_copy, moved), partial(Run.device_copy, moved)
    return moved


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(NUM_BLOCKS))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            states = checkpoint(block, states, use_reentrant=False)
        return states


def test_in_a_rehearsal_weights_and_gradients_count_while_they_visit_and_nothing_counts_at_home() -> None:
    run = rehearsed()
    with FakeTensorMode(), LiveTensors() as counted:
        model = Stack()
        assert counted.live == NUM_BLOCKS * BLOCK
        groups = [Group(block.parameters(), run, trains=True) for block in model.blocks]
        Schedule(model, [Stretch([block], block) for block in model.blocks], groups, None)
        assert counted.live < SMALL
        for _ in range(2):  # gradients are added up
            loss = model(torch.empty(1, WIDTH)).sum()
            assert BLOCK <= counted.live < BLOCK + SMALL  # the last block stays for backward
            counted.since_now()
            loss.backward()
            assert 2 * BLOCK <= counted.peak < 2 * BLOCK + SMALL  # the weight of a block and its gradient
            assert counted.live < SMALL
        assert all(weight.grad is not None and weight.grad.shape == (WIDTH, WIDTH) for weight in model.parameters())


@pytest.mark.parametrize("level", ["block", "leaf"])
def test_in_a_rehearsal_an_encoder_counts_for_what_visits_and_for_nothing_else(level: str) -> None:
    run = rehearsed()
    with FakeTensorMode(), LiveTensors() as counted, torch.no_grad():
        network = Stack()
        offload_encoder("text_encoder", network, level, 1, run.device, None)
        assert counted.live == NUM_BLOCKS * BLOCK  # the machine is the device
        count_visits(network, run)
        assert counted.live < SMALL
        counted.since_now()
        network(torch.empty(1, WIDTH))
        assert BLOCK <= counted.peak < BLOCK + SMALL
        assert counted.live < SMALL

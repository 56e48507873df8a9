"""Groups where memory is counted and not taken: what is at home costs nothing, what visits the device costs what it takes."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tunesmith.live import LiveTensors
from tunesmith_group_offload.groups import Group
from tunesmith_group_offload.schedule import Schedule, Stretch

META = torch.device("meta")
WIDTH, NUM_BLOCKS = 512, 4
BLOCK = 4 * WIDTH * WIDTH
"""Bytes of the weight of a block."""
SMALL = BLOCK // 20
"""More bytes than all activations take."""


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False, device=META) for _ in range(NUM_BLOCKS))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            states = checkpoint(block, states, use_reentrant=False)
        return states


def test_on_the_meta_device_weights_and_gradients_count_while_they_visit_and_nothing_counts_at_home() -> None:
    with LiveTensors() as counted:
        model = Stack()
        assert counted.live == NUM_BLOCKS * BLOCK
        groups = [Group(block.parameters(), META, trains=True) for block in model.blocks]
        Schedule(model, [Stretch([block], block) for block in model.blocks], groups, None)
        assert counted.live < SMALL
        for _ in range(2):  # gradients are added up
            loss = model(torch.empty(1, WIDTH, device=META)).sum()
            assert BLOCK <= counted.live < BLOCK + SMALL  # the last block stays for backward
            counted.since_now()
            loss.backward()
            assert 2 * BLOCK <= counted.peak < 2 * BLOCK + SMALL  # the weight of a block and its gradient
            assert counted.live < SMALL
        assert all(weight.grad is not None and weight.grad.shape == (WIDTH, WIDTH) for weight in model.parameters())

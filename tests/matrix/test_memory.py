"""What saves memory goes with all that changes what is learnt, on every family, and offload changes no number."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from .conftest import Matrix
from .features import FEATURES
from .stage import FAMILIES

LEARNING = frozenset(FEATURES) - {"resume"}
"""Everything at once: an adapter, activation checkpointing and accumulation with the four that change what is learnt."""
SAVING = "[plugins.ema]\ndecay = 0.9\n[plugins.quantize]\nformat = 'int8-bnb'\n"
OFFLOAD = "[plugins.group_offload]\n"
EIGHT_BITS = "optimizer.type='adamw8bit'"


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_at_once_learns_on_a_packed_base_that_comes_and_goes(matrix: Matrix, family: str) -> None:
    kept, seen = matrix.train(family, LEARNING, "kept", SAVING, EIGHT_BITS)
    moved, _ = matrix.train(family, LEARNING, "moved", SAVING + OFFLOAD, EIGHT_BITS)
    assert len(kept.losses) == 3
    assert moved.losses == kept.losses
    for feature in ("masked", "crepa", "tread", "scheduled_sampling", "lora", "accumulation"):
        FEATURES[feature].shows(seen)
    adapter, other, average = (
        load_file(folder / "final" / place / "pytorch_lora_weights.safetensors")
        for folder, place in ((kept.path, ""), (moved.path, ""), (kept.path, "ema"))
    )
    assert all(torch.equal(value, other[name]) for name, value in adapter.items())
    assert any(not torch.equal(value, average[name]) for name, value in adapter.items())

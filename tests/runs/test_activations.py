"""`[run] activations = "cpu"`: what has been away comes back as it lay, so that a run with it is the run without, bit for bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith.activations import pinned_copy, saved_tensors

from .filming import Film, film, films, twin_of

__all__ = ["film", "films", "twin_of"]


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What leaves a device that is pretended to be another than the CPU, by the very copies."""
    homes: list[Tensor] = []

    def send(tensor: Tensor) -> Tensor:
        homes.append(pinned_copy(tensor))
        return homes[-1]

    def pretended(run: Any) -> Any:
        return saved_tensors(SimpleNamespace(config=run.config, is_rehearsal=True, host_copy=send, device_copy=Tensor.clone))  # type: ignore[arg-type]

    monkeypatch.setattr("tunesmith.trainer.saved_tensors", pretended)
    return homes


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_run_whose_activations_come_and_go_is_the_run_without_bit_for_bit(film: Film, moved: list[Tensor], checkpointing: str) -> None:
    settings = ("run.steps=1", f"run.gradient_checkpointing={checkpointing}", "validation.at_start=false", "validation.at_end=false")
    stays = film("sana_video", "stays", "", *settings)
    assert not moved
    comes_and_goes = film("sana_video", "comes-and-goes", "", *settings, "run.activations=cpu")
    assert moved
    assert comes_and_goes.losses == stays.losses
    expected, found = stays.weights(1), comes_and_goes.weights(1)
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []

"""Predictions within a step that are no part of its loss leave no trace on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.tests.data.support import Facts
from tunesmith import Batch, Media, Model, TokenGrid


class Dropping(Model):
    """A model that drops half of its input out while training."""

    def predict(self, noisy: Tensor, sigma: Tensor, conditions: Batch) -> Tensor:
        out: Tensor = self.call(noisy)
        return out

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def pipeline(self, denoiser: nn.Module) -> Any:
        raise NotImplementedError

    def sample(self, pipeline: Any, request: Any) -> Media:
        raise NotImplementedError

    def trunk(self) -> list[Any]:
        return []

    def token_grid(self, latents: Tensor) -> TokenGrid:
        raise NotImplementedError


@pytest.fixture
def model() -> Model:
    return Dropping(Facts(), nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8)), {})


def predicted(model: Model, noisy: Tensor) -> Tensor:
    return model.predict(noisy, torch.zeros(len(noisy)), Batch())


def test_evaluating_drops_nothing_out_and_keeps_no_gradient(model):
    noisy, linear = torch.randn(4, 8), model.denoiser[1]
    with model.evaluating():
        assert not model.denoiser[0].training
        found = predicted(model, noisy)
    assert not found.requires_grad
    assert torch.equal(found, linear(noisy))
    assert not torch.equal(predicted(model, noisy), found)  # drops out again


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_before_even_after_an_error(model, training):
    model.denoiser.train(training)
    with pytest.raises(ZeroDivisionError), model.evaluating():
        raise ZeroDivisionError
    assert [part.training for part in model.denoiser.modules()] == [training] * 3
    assert torch.is_grad_enabled()


def test_what_autocast_cast_while_evaluating_is_forgotten(model, monkeypatch):
    events = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: events.append("forgotten"))
    with torch.autocast("cpu", torch.bfloat16):
        with model.evaluating():
            predicted(model, torch.randn(4, 8))
            events.append("predicted")
        assert events == ["predicted", "forgotten"]

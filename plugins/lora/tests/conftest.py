"""The twin of a model with an adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.adapting import Trained, attach, base_prediction, predict, twin
from tunesmith_lora import Lora, LoraSettings

__all__ = ["Trained", "base_prediction", "make", "predict", "twin"]


@pytest.fixture
def make(twin: Path) -> Callable[..., Trained]:
    """Load the twin with an adapter of the given settings."""

    def made(*, seed: int = 0, weights: str = "fp32", is_main: bool = True, **settings: Any) -> Trained:
        return attach(twin, Lora("lora", LoraSettings.model_validate(settings)), seed, weights, is_main)

    return made

"""The twin of a model with adapters, and their lycoris_config.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.adapting import Trained, attach, base_prediction, predict, stand_in, twin
from tunesmith_lycoris import Lycoris, LycorisSettings

__all__ = ["Trained", "base_prediction", "make", "predict", "stand_in", "twin", "written"]


@pytest.fixture
def make(twin: Path) -> Callable[..., Trained]:
    """Load the twin with adapters of the given settings."""

    def made(*, seed: int = 0, weights: str = "fp32", is_main: bool = True, **settings: Any) -> Trained:
        trained = attach(twin, Lycoris("lycoris", LycorisSettings.model_validate(settings)), seed, weights, is_main)
        for name, parameter in trained.model.denoiser.named_parameters():
            parameter.requires_grad_(".lycoris." in name)
        return trained

    return made


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a lycoris_config.json."""

    def write(**content: Any) -> Path:
        file = tmp_path / "lycoris_config.json"
        file.write_text(json.dumps(content))
        return file

    return write

"""A tiny model, a stand-in for the run, and the hooks of the family with the adapters around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tunesmith import Batch, Model, Part, Ragged, Run
from tunesmith.hooks import HookCaller
from tunesmith.randomness import torch_generator
from tunesmith_lycoris import Lycoris, LycorisSettings
from tunesmith_sana import Sana, SanaFamily, SanaSettings

SIGMA = torch.tensor([0.2, 0.7])


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random twin of a checkpoint."""
    return SanaFamily.tiny(tmp_path_factory.mktemp("checkpoint"))


@dataclass
class Trained:
    """A denoiser with adapters, as a run holds it."""

    run: Run
    plugin: Lycoris
    model: Model
    hooks: HookCaller

    @property
    def adapter(self) -> dict[str, Tensor]:
        """The trainable parameters by name."""
        return {name: parameter for name, parameter in self.model.denoiser.named_parameters() if parameter.requires_grad}

    def disturb(self) -> None:
        """Give the adapters weights that are not the start's, as training would."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.adapter.values():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)

    def save(self, folder: Path) -> Path:
        self.hooks.save_checkpoint(self.run, folder)
        return folder / "pytorch_lora_weights.safetensors"

    @torch.no_grad()
    def predict(self) -> Tensor:
        return predict(self.model)


def predict(model: Model) -> Tensor:
    """The velocity of two fixed samples."""
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn((2, 4, 8, 8), generator=generator)
    rows = Ragged([torch.randn((length, 32), generator=generator) for length in (7, 3)])
    return model.predict(noisy, SIGMA, Batch(fields={"prompt_embeds": rows}))


def stand_in(twin: Path, seed: int = 0, weights: str = "fp32", is_main: bool = True) -> tuple[Sana, Any]:
    """The family, and what it and the plugin ask of a run."""
    family = Sana("sana", SanaSettings(path=str(twin)))
    run = SimpleNamespace(
        config=SimpleNamespace(run=SimpleNamespace(weights=weights), validation=SimpleNamespace(resolutions=(), scheduler=None)),
        device=torch.device("cpu"),
        family=family.family(),
        is_main=is_main,
        torch_generator=lambda purpose, *position: torch_generator(seed, purpose, *position),
    )
    return family, run


@pytest.fixture
def make(twin: Path) -> Callable[..., Trained]:
    """Load the twin with adapters of the given settings."""

    def attach(*, seed: int = 0, weights: str = "fp32", is_main: bool = True, **settings: Any) -> Trained:
        family, run = stand_in(twin, seed, weights, is_main)
        lycoris = Lycoris("lycoris", LycorisSettings.model_validate(settings))
        hooks = HookCaller([family, lycoris])
        run.model = hooks.load_model(cast(Run, run), Part.DENOISER)
        run.model.denoiser.requires_grad_(False)  # as the core does, before adapters are there
        for name, parameter in run.model.denoiser.named_parameters():
            parameter.requires_grad_(".lycoris." in name)
        return Trained(cast(Run, run), lycoris, run.model, hooks)

    return attach


@pytest.fixture
def base_prediction(twin: Path) -> Tensor:
    """What the twin predicts without any adapter."""
    sana, run = stand_in(twin)
    with torch.no_grad():
        return predict(sana.load_model(cast(Run, run), Part.DENOISER))


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a lycoris_config.json."""

    def write(**content: Any) -> Path:
        file = tmp_path / "lycoris_config.json"
        file.write_text(json.dumps(content))
        return file

    return write

"""A tiny model with adapters, a stand-in for the run, and the hooks of the family with the adapters around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.runs.conftest import twin
from tunesmith import Batch, InputError, Model, NoSettings, Part, Plugin, Ragged, Run, Stage, hookimpl
from tunesmith.hooks import HookCaller
from tunesmith.randomness import torch_generator
from tunesmith_sana import Sana, SanaSettings

__all__ = [
    "Trained",
    "assert_dropout_acts_while_training_alone",
    "assert_start_follows_the_seed",
    "assert_what_is_no_file_is_told",
    "attach",
    "bare",
    "base_prediction",
    "predict",
    "stand_in",
    "twin",
]

SIGMA = torch.tensor([0.2, 0.7])


@dataclass
class Trained:
    """A denoiser with adapters, as a run holds it."""

    run: Run
    plugin: Any
    model: Model
    hooks: HookCaller

    @property
    def adapter(self) -> dict[str, Tensor]:
        """The trainable parameters by name."""
        return {name: parameter for name, parameter in self.model.denoiser.named_parameters() if parameter.requires_grad}

    @property
    def base(self) -> dict[str, Tensor]:
        """The frozen parameters by name."""
        return {name: parameter for name, parameter in self.model.denoiser.named_parameters() if not parameter.requires_grad}

    def disturb(self, scale: float = 0.3) -> None:
        """Give the adapters weights that are not the start's, as training would."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.adapter.values():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)

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
    """The family, and what it and a plugin of adapters ask of a run."""
    family = Sana("sana", SanaSettings(path=str(twin)))
    table = SimpleNamespace(weights=weights, compile=False)
    run = SimpleNamespace(
        config=SimpleNamespace(run=table, validation=SimpleNamespace(resolutions=(), scheduler=None)),
        device=torch.device("cpu"),
        family=family.family(),
        is_main=is_main,
        torch_generator=lambda purpose, *position: torch_generator(seed, purpose, *position),
    )
    return family, run


def attach(twin: Path, plugin: Plugin[Any], seed: int = 0, weights: str = "fp32", is_main: bool = True) -> Trained:
    """Load the twin with the adapters of a plugin."""
    family, run = stand_in(twin, seed, weights, is_main)
    hooks = HookCaller([family, plugin])
    run.model = hooks.load_model(cast(Run, run), Part.DENOISER)
    return Trained(cast(Run, run), plugin, run.model, hooks)


class Loaded(Plugin[NoSettings]):
    """Give a model that is there already."""

    stage = Stage.LOAD
    model: Model

    @hookimpl
    def load_model(self, run: Run, part: Part) -> Model:
        return self.model


def bare(trained: Trained) -> Loaded:
    """The same model once more, loaded and without adapters, for plugins around it to adapt."""
    family, *_ = trained.hooks.plugins
    provider = Loaded("loaded", NoSettings())
    provider.model = HookCaller([family]).load_model(trained.run, Part.DENOISER)
    return provider


def assert_start_follows_the_seed(make: Callable[..., Trained]) -> None:
    """What adapters start with is a function of the run's seed, whatever was drawn before."""
    first = make(rank=2, seed=3).adapter
    torch.rand(5)
    again, other = make(rank=2, seed=3).adapter, make(rank=2, seed=4).adapter
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def assert_dropout_acts_while_training_alone(trained: Trained, without: Trained) -> None:
    """And is drawn from the global generator; `without` has the same adapters and no dropout."""
    for one in (trained, without):
        one.disturb()
        one.model.denoiser.eval()
    assert torch.equal(trained.predict(), without.predict())
    trained.model.denoiser.train()

    def seeded(seed: int) -> Tensor:
        torch.manual_seed(seed)  # as the trainer does before each micro-batch
        return trained.predict()

    first, other, again = seeded(1), seeded(2), seeded(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, without.predict())


def assert_what_is_no_file_is_told(make: Callable[..., Trained], twin: Path, folder: Path, lacks: str) -> None:
    """No file, text, and a file of other keys cannot be started from; of the last it is told what it lacks."""
    text = folder / "text.safetensors"
    text.write_text("this is text")
    other = twin / "transformer/diffusion_pytorch_model.safetensors"
    for file, told in ((folder, "there is no such file"), (text, "no safetensors file"), (other, lacks)):
        with pytest.raises(InputError, match=told):
            make(init_from=file)


@pytest.fixture
def base_prediction(twin: Path) -> Tensor:
    """What the twin predicts without any adapter."""
    sana, run = stand_in(twin)
    with torch.no_grad():
        return predict(sana.load_model(cast(Run, run), Part.DENOISER))

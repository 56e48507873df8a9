"""The reference data, its toy model, and a run that has just what the plugin asks of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tunesmith import LATENTS, Batch, Loss, NoSettings, Plugin, Run, Stage, Step, TokenGrid, hookimpl, mix
from tunesmith.hooks import HookCaller
from tunesmith.randomness import numpy_generator
from tunesmith_scheduled_sampling import ScheduledSampling, ScheduledSamplingSettings

FILES = Path(__file__).parent / "golden"
GOLDEN: Mapping[str, Tensor] = load_file(FILES / "scheduled_sampling.safetensors")
FACTS: Mapping[str, Any] = json.loads((FILES / "scheduled_sampling.json").read_text())
LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN = GOLDEN["in.latents"], GOLDEN["in.noise"]


def toy(noisy: Tensor, timestep: Tensor) -> Tensor:
    """The model of the reference: affine in the latents and in the timestep, [B, C, ...] and [B] to [B, C, ...]."""
    told = noisy.flatten(1) @ GOLDEN["A"].T + GOLDEN["b"] + (timestep / 1000)[:, None] * GOLDEN["c"]
    return told.reshape(noisy.shape)


class ToyModel:
    """Predicts by a function, counts, and keeps what it was asked."""

    def __init__(self, velocity: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.velocity = velocity
        self.denoiser = nn.Dropout(0.5)
        self.asked: list[tuple[Tensor, Tensor, bool, bool]] = []

    def predict(self, noisy: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        self.asked.append((noisy, sigma, self.denoiser.training, torch.is_grad_enabled()))
        return self.velocity(noisy, sigma)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.denoiser.eval()
        with torch.no_grad():
            yield
        self.denoiser.train()

    def token_grid(self, latents: Tensor) -> TokenGrid:
        return TokenGrid(1, *latents.shape[-2:])


class Objective(Plugin[NoSettings]):
    """The squared error of the model's prediction."""

    stage = Stage.LOAD

    @hookimpl
    def compute_loss(self, run: Run, step: Step) -> Loss:
        step.prediction = run.model.predict(step.noisy, step.sigma, step.batch)
        return Loss((step.prediction - step.target).square())


@dataclass
class Bench:
    """A model in a run with the plugin in it."""

    settings: ScheduledSamplingSettings
    velocity: Callable[[Tensor, Tensor], Tensor] = lambda noisy, sigma: toy(noisy, 1000 * sigma.reshape(len(noisy), -1).amax(dim=1))
    shift: float = 1.0
    seed: int = 0
    model: ToyModel = field(init=False)

    def __post_init__(self) -> None:
        self.model = ToyModel(self.velocity)
        self.plugin = ScheduledSampling("scheduled_sampling", self.settings)
        self.hooks = HookCaller([Objective("objective", NoSettings()), self.plugin])
        run = SimpleNamespace(
            is_rehearsal=False,
            model=self.model,
            family=SimpleNamespace(defaults=SimpleNamespace(sampling_steps=20), noise_shift=self.shift),
            numpy_generator=lambda purpose, *position: numpy_generator(self.seed, purpose, *position),
        )
        self.run = cast(Run, run)

    def compute(self, step: Step) -> Loss:
        return self.hooks.compute_loss(self.run, step)


def settings(**given: Any) -> ScheduledSamplingSettings:
    return ScheduledSamplingSettings.model_validate(given)


def step_at(sigma: Tensor, position: int = 0, index: int = 0, mode: Any = "train") -> Step:
    """A step on the latents and noise of the reference."""
    latents, noise = LATENTS_OF_GOLDEN[: len(sigma)], NOISE_OF_GOLDEN[: len(sigma)]
    batch = Batch(fields={LATENTS: latents})
    return Step(index, 0, position, mode, batch, sigma, noise, *mix(latents, noise, sigma))


@pytest.fixture
def sigma() -> Tensor:
    """A level for each sample of the reference."""
    return torch.tensor([0.1, 0.5, 0.7, 0.03])

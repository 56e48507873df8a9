"""The rollout: where each sample starts, and the way back to its own noise level by the model's predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from tunesmith import mix, shift_sigma, spread

Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(noisy [B, C, ...], sigma) -> velocity [B, C, ...]."""
Path: TypeAlias = Sequence[float]
"""The sigmas of one sample, from where it starts to its own; its own alone where it is not rolled out."""
LEAST_STEP = 0.01
"""A step of less than this share of a whole one, which only sigma 1 at the start can lead to, is not made."""


def paths(levels: Sequence[float], steps: Sequence[int], shift: float, sampling_steps: int) -> list[Path]:
    """Where each sample goes: so many steps of a sampler of `sampling_steps` down to its level, and none from beyond sigma 1.

    Steps are even before the shift of the schedule, so the levels are taken back through it, counted up, and shifted again.
    """
    result: list[Path] = []
    for level, place, count in zip(levels, shift_sigma(np.array(levels), 1 / shift).tolist(), steps, strict=True):
        places = [place]
        for number in range(1, count + 1):
            earlier = min(place + number / sampling_steps, 1.0)
            if earlier - places[-1] > LEAST_STEP / sampling_steps:
                places.append(earlier)
        result.append([*shift_sigma(np.array(places[:0:-1]), shift).tolist(), level])
    return result


@dataclass(frozen=True)
class Solver:
    """A scheduler of diffusers, by the name and the order that the settings have."""

    name: str = "euler"
    order: int = 2

    def along(self, path: Path) -> Any:
        """A scheduler for one sample, at the start of its path."""
        if self.name == "euler":
            scheduler = FlowMatchEulerDiscreteScheduler()
        else:
            scheduler = UniPCMultistepScheduler(solver_order=self.order, prediction_type="flow_prediction", use_flow_sigmas=True)
        scheduler.set_timesteps(sigmas=np.array(path[:-1]))
        scheduler.sigmas[-1] = path[-1]  # where diffusers puts 0: sampling would go on to the end
        scheduler.set_begin_index(0)
        return scheduler


def moves(sigma: Tensor) -> Tensor:
    """Where a sample is made and not given, in the shape of sigma: [B] or broadcasting to [B, C, ...]."""
    return sigma > 0 if sigma.ndim > 1 else torch.ones_like(sigma, dtype=torch.bool)


def rolled_out(
    velocity: Velocity, latents: Tensor, noise: Tensor, noisy: Tensor, sigma: Tensor, ways: Sequence[Path], solver: Solver
) -> Tensor:
    """The latents [B, C, ...] to which the model's own steps lead, each sample along its path, from its own noise.

    All samples are asked of the model at once. Those with fewer steps wait at their start and all arrive together; those
    without any stay as they are in `noisy`, and what is given (sigma 0 within a sample) stays what it is.
    """
    made = moves(sigma)
    turns = max(map(len, ways)) - 1

    def level(turn: int) -> Tensor:
        levels = [way[max(turn - turns + len(way) - 1, 0)] for way in ways]
        return torch.where(made, sigma.new_tensor(levels).reshape(-1, *[1] * (sigma.ndim - 1)), 0.0)

    schedulers = [solver.along(way) if len(way) > 1 else None for way in ways]
    starts = torch.tensor([len(way) > 1 for way in ways], device=sigma.device)
    states = torch.where(spread(starts, latents), mix(latents, noise, level(0))[0], noisy)
    for turn in range(turns):
        predicted = velocity(states, level(turn)).float()
        rows = list(torch.split(states, 1))
        with torch.autocast(states.device.type, enabled=False):  # solvers multiply matrices too, and need their precision
            for row, (way, scheduler) in enumerate(zip(ways, schedulers, strict=True)):
                done = turn - turns + len(way) - 1
                if scheduler is not None and done >= 0:
                    rows[row] = scheduler.step(predicted[row : row + 1], 1000 * way[done], rows[row]).prev_sample
        states = torch.where(spread(made, latents), torch.cat(rows), latents)
    return states

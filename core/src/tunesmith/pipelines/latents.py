"""How an autoencoder's latents become those that a denoiser is trained on: by channel, or by one factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and deviation of latents, one number a channel."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def read(cls, stated: Mapping[str, Any], channels: int, origin: object) -> LatentStatistics:
        """`latents_mean` and `latents_std` of an autoencoder's configuration; InputError unless each has a number a channel."""
        for name in ("latents_mean", "latents_std"):
            values = stated.get(name)
            if not isinstance(values, list | tuple) or len(values) != channels:
                found = f"has {len(values)}" if isinstance(values, list | tuple) else "has none"
                raise InputError(
                    f"the autoencoder of {origin} needs {channels} numbers as {name} in its configuration and {found}; without them its "
                    "latents are not those that the transformer was trained with: take the config.json that belongs to its weights"
                )
        return cls(tuple(map(float, stated["latents_mean"])), tuple(map(float, stated["latents_std"])))

    def normalise(self, latents: Tensor) -> Tensor:
        """Training latents, fp32 [B, C, F, H, W], of those of the autoencoder: less the mean, by the deviation."""
        return (latents.float() - _column(self.mean, latents)) / _column(self.deviation, latents)

    def measure(self, spread: Tensor) -> Tensor:
        """A deviation in the measure of training latents, fp32."""
        return spread.float() / _column(self.deviation, spread)

    def restore(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents, fp32, of training latents; the inverse of `normalise`."""
        return latents.float() * _column(self.deviation, latents) + _column(self.mean, latents)


@dataclass(frozen=True)
class LatentFactor:
    """One factor for all latents, and what is taken off them before."""

    factor: float
    shift: float = 0.0

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> LatentFactor:
        """`scaling_factor` and `shift_factor` of an autoencoder's configuration, where it has them."""
        return cls(float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0))

    def normalise(self, latents: Tensor) -> Tensor:
        """Training latents, fp32, of those of the autoencoder."""
        return (latents.float() - self.shift) * self.factor

    def measure(self, spread: Tensor) -> Tensor:
        """A deviation in the measure of training latents, fp32."""
        return spread.float() * self.factor

    def restore(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents of training latents; the inverse of `normalise`."""
        return latents / self.factor + self.shift


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    """One number a channel, [1, C, 1, ...]."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, *[1] * (like.ndim - 2))

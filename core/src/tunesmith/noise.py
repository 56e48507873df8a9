"""How noise levels are drawn: a density over (0, 1), then the shift of the flow schedule."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .config.tables import NoiseTable

Floats = NDArray[np.float64]

AUTO_TOKENS = (256, 4096)
AUTO_MU = (0.5, 1.15)


def shift_sigma(sigma: Floats, shift: float) -> Floats:
    """sigma' = s * sigma / (1 + (s - 1) * sigma); s = 1 changes nothing (Esser et al. 2024, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def auto_shift(tokens: int, clamp: bool) -> float:
    """e^mu, with mu linear in the number of tokens between (256, 0.5) and (4096, 1.15), as diffusers' schedulers have it."""
    if clamp:
        tokens = min(max(tokens, AUTO_TOKENS[0]), AUTO_TOKENS[1])
    slope = (AUTO_MU[1] - AUTO_MU[0]) / (AUTO_TOKENS[1] - AUTO_TOKENS[0])
    return math.exp(AUTO_MU[0] + slope * (tokens - AUTO_TOKENS[0]))


def logit_normal(normal: Floats, scale: float, offset: float) -> Floats:
    """sigmoid(scale * (n + offset)) for standard normal n."""
    return 1 / (1 + np.exp(-scale * (normal + offset)))


class SigmaSampler:
    """Draws the sigmas of a micro-batch as `[noise]` says.

    `checkpoint_shift` is the shift of the checkpoint's own schedule, None where it has none.
    """

    def __init__(self, table: NoiseTable, checkpoint_shift: float | None) -> None:
        self.table = table
        self.checkpoint_shift = checkpoint_shift

    def shift(self, tokens: int) -> float:
        """The shift for samples of so many tokens; 1 means none."""
        if self.table.shift == "auto":
            return auto_shift(tokens, self.table.auto_clamp)
        if self.table.shift == "checkpoint":
            return self.checkpoint_shift or 1.0
        return 1.0 if self.table.shift == "none" else self.table.shift

    def draw(self, generator: np.random.Generator, count: int, tokens: int) -> Floats:
        """Noise levels for `count` samples of `tokens` tokens each, in [0, 1]."""
        table = self.table
        if table.distribution == "uniform":
            density = generator.random(count)
        elif table.distribution == "beta":
            density = generator.beta(table.alpha, table.beta, count)
        else:
            density = logit_normal(generator.standard_normal(count), table.scale, table.offset)
        return shift_sigma(density, self.shift(tokens))

"""One micro-batch on its way through the objective."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from .batch import Batch


@dataclass
class Step:
    """One micro-batch: what the trainer drew, what the model predicted, and what plugins keep meanwhile.

    `index` counts optimizer steps, `micro` the micro-batches within one. `position` is the number of this micro-batch
    in the run's order of batches, on which every draw depends. `sigma` is [B] or broadcasts to the latents (such as
    [B, 1, F, 1, 1]); `noise`, `noisy` and `target` have the shape of the latents. Whoever changes `noisy` sets
    `sigma` and `target` to match. What is given to the model, such as the first frame of a clip, has sigma 0 within
    such a broadcasting sigma, and the core weighs its loss with 0. `keep` marks tokens that must not be dropped,
    [B, tokens]. Where samples keep what the model knows (`keeps_base`), the target becomes the prediction without adapters
    within `compute_loss`; terms that pull the prediction elsewhere are out of place there. `prediction` is the objective's,
    a velocity in the shape of the latents. `metrics` are numbers and scalars for the step's event, whose names begin with
    their plugin's; they are averaged over micro-batches. `hidden` has, by block, what came out of the blocks that plugins
    read (`Plugin.reads_blocks`) in mode `train`: [B, T, D], the tokens of the grid first. `scratch` holds one dict per plugin
    and lives as long as the step.
    """

    index: int
    micro: int
    position: int
    mode: Literal["train", "eval"]
    batch: Batch
    sigma: Tensor
    noise: Tensor
    noisy: Tensor
    target: Tensor
    keep: Tensor | None = None
    keeps_base: bool = False
    prediction: Tensor | None = None
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    scratch: defaultdict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))

    def keep_tokens(self, tokens: Tensor) -> None:
        """Mark further tokens, a boolean [B, tokens], as ones that must not be dropped."""
        self.keep = tokens if self.keep is None else self.keep | tokens

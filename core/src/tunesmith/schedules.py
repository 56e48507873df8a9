"""Schedules as functions of the step alone, so that nothing of them needs saving: of the learning rate, and of a term of the loss."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from .config.tables import MOST_STEPS, OptimizerTable
from .plugin import Settings


def learning_rate_factor(step: int, total: int, table: OptimizerTable) -> float:
    """The factor on the learning rate for the update with this index (0 is the first of `total`).

    A warmup of w steps rises linearly and reaches 1 at step w, whatever the schedule; from there it falls to `end` at
    the last step. `constant` stays at 1.
    """
    if step < table.warmup:
        return (step + 1) / (table.warmup + 1)
    if table.schedule == "constant":
        return 1.0
    progress = min((step - table.warmup) / max(total - 1 - table.warmup, 1), 1.0)
    return table.end + (1 - table.end) * _fall(progress, table)


def _fall(progress: float, table: OptimizerTable) -> float:
    """From 1 at progress 0 to 0 at progress 1."""
    if table.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if table.schedule == "cosine_with_restarts":
        return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * ((table.cycles * progress) % 1.0)))
    if table.schedule == "polynomial":
        return float((1 - progress) ** table.power)
    return 1 - progress


class ScheduledWeight(Settings):
    """How much a term counts beside the loss itself, step by step: what the settings of a plugin inherit that adds one."""

    weight: float = Field(1.0, gt=0)
    """How much the term counts, beside the loss itself."""
    schedule: Literal["constant", "linear", "cosine", "polynomial"] = "constant"
    """How the weight goes to `end_weight`."""
    warmup_steps: int = Field(0, ge=0, le=MOST_STEPS)
    """Steps in which the weight rises from 0."""
    decay_steps: int = Field(0, ge=0, le=MOST_STEPS)
    """The step at which `end_weight` is reached; 0 is the end of the run."""
    end_weight: float = Field(0.0, ge=0)
    """The weight that a schedule other than constant ends with."""
    power: float = Field(1.0, gt=0)
    """Exponent of the polynomial schedule."""
    cutoff_step: int = Field(0, ge=0, le=MOST_STEPS)
    """From this step on the term counts nothing; 0 is never."""

    @model_validator(mode="after")
    def _each_does_something(self) -> ScheduledWeight:
        fall = {"end_weight", "decay_steps"} & self.model_fields_set
        if self.schedule == "constant" and fall:
            raise ValueError(f'`{min(fall)}` is of a weight that changes: set `schedule` to "linear" or another, or take it out')
        if self.schedule != "polynomial" and "power" in self.model_fields_set:
            raise ValueError('`power` is that of schedule = "polynomial": take it out, or set that schedule')
        for key, end in (("decay_steps", self.decay_steps), ("cutoff_step", self.cutoff_step)):
            if 0 < end <= self.warmup_steps:
                raise ValueError(f"warmup_steps = {self.warmup_steps} is not over at {key} = {end}: let the weight rise before it falls")
        return self

    def weight_at(self, step: int, total: int) -> float:
        """The weight in an optimizer step (`step.index`) of a run of `total` steps (`run.total_steps`), counted from 0."""
        if self.cutoff_step and step >= self.cutoff_step:
            return 0.0
        if step < self.warmup_steps:
            return self.weight * step / self.warmup_steps
        done = min((step - self.warmup_steps) / max((self.decay_steps or total) - self.warmup_steps, 1), 1.0)
        cosine = (1 + math.cos(math.pi * done)) / 2
        left: float = {"constant": 1.0, "linear": 1 - done, "cosine": cosine, "polynomial": (1 - done) ** self.power}[self.schedule]
        return self.end_weight + (self.weight - self.end_weight) * left

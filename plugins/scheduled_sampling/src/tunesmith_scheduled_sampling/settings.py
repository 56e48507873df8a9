"""What can be set: how often, how far and how samples are rolled out, and what is learnt from it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from tunesmith import Settings


class ProbabilityRamp(Settings):
    """`ramp = { ... }` of `[plugins.scheduled_sampling]`: a probability that changes from one optimizer step to the next."""

    start: float = Field(0.0, ge=0, le=1)
    """The probability until `from_step`."""
    end: float = Field(0.5, ge=0, le=1)
    """The probability once the ramp is over."""
    steps: int = Field(ge=1)
    """How many optimizer steps it takes from `start` to `end`."""
    from_step: int = Field(0, ge=0)
    """The optimizer step with which the ramp begins."""
    shape: Literal["linear", "cosine"] = "linear"
    """How it gets there: evenly, or slowly at both ends."""

    def at(self, step: int) -> float:
        """The probability in an optimizer step."""
        progress = min(max((step - self.from_step) / self.steps, 0.0), 1.0)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress


class ReflexFlowSettings(Settings):
    """`reflexflow = { ... }` of `[plugins.scheduled_sampling]`: the terms of ReflexFlow (2512.04904), for what was rolled out."""

    frequency: float = Field(1.0, ge=0)
    """Alpha: weigh elements by 1 + alpha times their share of what the prediction lost by drifting; 0 saves its two predictions."""
    anti_drift: float = Field(10.0, ge=0)
    """Beta 1: weight of the squared distance between the directions of the prediction and from x0 to the state; 0 to 4 in itself."""
    flow: float = Field(1.0, gt=0)
    """Beta 2: weight of the loss itself where a micro-batch was rolled out."""


class ScheduledSamplingSettings(Settings):
    """`[plugins.scheduled_sampling]`: train on what the model's own steps lead to."""

    probability: float = Field(0.5, ge=0, le=1)
    """Share of the micro-batches that are rolled out; drawn once for all samples of one, so that its cost is only paid for these."""
    ramp: ProbabilityRamp | None = None
    """A probability that changes with the steps, instead of `probability`."""
    max_steps: int = Field(4, ge=1)
    """The most solver steps of a rollout; how many there are is drawn from 0 to this, for all samples of a micro-batch alike."""
    offsets: Literal["uniform", "biased_early", "biased_late"] = "uniform"
    """Which numbers of steps are likely: all alike, rather few, or rather many."""
    solver: Literal["euler", "unipc"] = "euler"
    """What makes a step: diffusers' FlowMatchEulerDiscreteScheduler or UniPCMultistepScheduler; both ask the model once for each."""
    order: int = Field(2, ge=1, le=3)
    """Order of `unipc`; a rollout of few steps has a lower one, as the end of sampling does."""
    sampling_steps: int | None = Field(None, ge=1)
    """A solver step is as large as one of sampling with so many steps; the family's own number when not given."""
    target: Literal["corrected", "constant"] = "corrected"
    """The velocity to learn: from where the model drifted straight to x0, or noise - x0 as if there were no drift."""
    reflexflow: ReflexFlowSettings | None = None
    """Add the terms of ReflexFlow; without this table there are none."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> ScheduledSamplingSettings:
        if self.ramp is not None and "probability" in self.model_fields_set:
            raise ValueError("there are both `probability` and `ramp`: a ramp goes from its `start` to its `end`; take `probability` out")
        if self.solver == "euler" and "order" in self.model_fields_set:
            raise ValueError('`order` is that of solver = "unipc", and euler has none: take `order` out, or set solver = "unipc"')
        return self

    def probability_at(self, step: int) -> float:
        """The share of micro-batches of an optimizer step that are rolled out."""
        return self.probability if self.ramp is None else self.ramp.at(step)

    @property
    def chances(self) -> list[float]:
        """How likely a rollout of 0 to `max_steps` steps is: 1 / (max_steps + 1) each, or u^2 max_steps rounded for uniform u."""
        most = self.max_steps
        if self.offsets == "uniform":
            return [1 / (most + 1)] * (most + 1)
        edges = [0.0, *(math.sqrt((number + 0.5) / most) for number in range(most)), 1.0]
        few = [later - earlier for earlier, later in pairwise(edges)]
        return few if self.offsets == "biased_early" else few[::-1]

    @property
    def expected_steps(self) -> float:
        """How many steps a rollout has on average."""
        return sum(steps * chance for steps, chance in enumerate(self.chances))

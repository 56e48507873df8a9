"""The sigma schedule to sample with: the checkpoint's own, or another flow-matching one at the same shift."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
from diffusers import SchedulerMixin

from .errors import InputError

_SHIFT = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_FLOW_SHIFT = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler")
SCHEDULERS = (*_SHIFT, *_FLOW_SHIFT)
"""Schedulers of diffusers that can follow a flow and take its shift."""


def make_scheduler(config: Mapping[str, Any], name: str | None, nicknames: Sequence[str] = ()) -> SchedulerMixin:
    """A new scheduler from the checkpoint's configuration: its own class, or the named one at the checkpoint's shift.

    Raises InputError, with the nearest name, if the named one is none of `SCHEDULERS`; `nicknames` are told beside
    these, as what a family takes besides.
    """
    own = config["_class_name"]
    if name is None or name == own:
        return getattr(diffusers, own).from_config(dict(config))
    if name not in SCHEDULERS:
        allowed = (*nicknames, *SCHEDULERS)
        near = difflib.get_close_matches(name, allowed, 1)
        guess = f" did you mean {near[0]}?" if near else ""
        raise InputError(f"a flow cannot be sampled with {name!r};{guess} allowed are {', '.join(allowed)}")
    shift = config.get("flow_shift", config.get("shift", 1.0))
    flow = {"flow_shift": shift, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return getattr(diffusers, name).from_config(dict(config), **({"shift": shift} if name in _SHIFT else flow))


def plain_config(scheduler: SchedulerMixin) -> dict[str, Any]:
    """A scheduler's configuration for a recipe, without infinities: JSON has no word for them, and they are defaults of the class."""
    return {key: value for key, value in scheduler.config.items() if not (isinstance(value, float) and not math.isfinite(value))}

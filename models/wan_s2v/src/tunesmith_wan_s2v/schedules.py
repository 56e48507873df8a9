"""The steps to sample with: UniPC at shift 3, or another solver of flows by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers import SchedulerMixin
from numpy.typing import NDArray

from tunesmith import make_scheduler

SHIFT = 3.0
"""That of Wan's own configuration of S2V; the one beside the converted checkpoint says 5."""

_EULER = "FlowMatchEulerDiscreteScheduler"
_NICKNAMES = {"unipc": "UniPCMultistepScheduler", "euler": _EULER}
_BETA = "beta"
_OWN: Mapping[str, Any] = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}


def make_schedule(name: str | None = None, shift: float = SHIFT, config: Mapping[str, Any] | None = None) -> SchedulerMixin:
    """A new diffusers scheduler for this family: UniPC of order 2 (bh2, predicting the clean sample) if neither argument says otherwise.

    `name` is "unipc", "euler", "beta" (Euler, its sigmas at the quantiles of Beta(0.6, 0.6), arXiv:2407.12173), or the
    class of a flow-matching scheduler of diffusers. `config` is the scheduler_config.json of a checkpoint, of which all
    but the shift is kept. Raises InputError, with the nearest name, for any other name.
    """
    own = {**_OWN, **(config or {})}
    own["flow_shift" if "flow_shift" in own or "shift" not in own else "shift"] = shift
    if name == _BETA:
        return make_scheduler({**own, "use_beta_sigmas": True}, _EULER)
    return make_scheduler(own, _NICKNAMES.get(name or "", name), (*_NICKNAMES, _BETA))


def wan_sigmas(num_steps: int) -> NDArray[np.float64]:
    """The sigmas, before the shift, at which Wan's own UniPC steps, [num_steps]: 0.999 * (1 - k / num_steps).

    diffusers' grid, 1 - 0.999 * k / num_steps, differs from it by up to 4e-3 once shifted. For the `sigmas` of the pipeline.
    """
    return 0.999 * (1 - np.arange(num_steps) / num_steps)

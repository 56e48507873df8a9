"""Learning-rate schedules as functions of the step alone, so that nothing of them needs saving."""

from __future__ import annotations

import math

from .config.tables import OptimizerTable


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

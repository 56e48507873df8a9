"""The memory that a run will take, told beforehand: each phase is gone through with shapes alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from .combined import parts_of
from .config import Config
from .config.tables import OptimizerTable
from .engine import Switching, make_optimizer
from .errors import InputError
from .live import LiveTensors, num_bytes
from .rehearsal import Phase, Size, rehearse
from .session import Assembly
from .understudies import NotRehearsed, OptimizerBytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EDGE = 128
"""Rows and columns of the matrix that optimizers are tried on; large enough for those that keep little of small ones otherwise."""


@dataclass(frozen=True)
class Forecast:
    """Bytes on the device in each phase, and the size of samples that they are of; without phases `reason` says why."""

    size: Size
    phases: tuple[Phase, ...]
    reason: str | None = None

    @property
    def peak(self) -> int:
        """The most that the run takes."""
        return max((phase.peak for phase in self.phases), default=0)


def forecast(config: Config, cast: Assembly, size: Size) -> Forecast:
    """What a run takes with samples of this size; the plugins of `cast` are of no use for a real run afterwards."""
    each = optimizer_bytes(config)
    if each is None:
        return Forecast(size, (), f"what {config.optimizer.type} keeps of each weight is only known where it can make a step")
    try:
        return Forecast(size, tuple(rehearse(config, cast, size, each)))
    except NotRehearsed as error:
        return Forecast(size, (), str(error))


def optimizer_bytes(config: Config) -> OptimizerBytes | None:
    """What the optimizer takes, found by letting it make steps; None if it cannot here."""
    table = config.optimizer.model_copy(update={"fused_backward_pass": False})
    try:
        with torch.compiler.set_stance("force_eager"):  # torchao's would be compiled, which takes long and cannot be watched
            (one, _, _), (two, state, switches) = (_updated(count, table, DTYPES[config.run.weights]) for count in (1, 2))
    except (InputError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError):
        return None  # it steps only on the device or the shapes that it is made for
    at_once = two > 1.5 * one
    values = EDGE * EDGE
    return OptimizerBytes(state / (2 * values), two / (2 * values) if at_once else one / values, at_once, switches)


def _updated(count: int, table: OptimizerTable, dtype: torch.dtype) -> tuple[int, int, bool]:
    """Bytes that came and went while so many matrices were updated, those that are kept of them, and whether two sets of weights are."""
    weights = [torch.nn.Parameter(torch.zeros(EDGE, EDGE, dtype=dtype)) for _ in range(count)]
    optimizer = make_optimizer(weights, table)
    parts = parts_of(optimizer)
    switching = [part for part in parts if isinstance(part, Switching)]
    for part in switching:
        part.train()
    for _ in range(2):
        with LiveTensors() as live:
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
            live.count((weights, _kept(parts)))
            live.since_now()
            before = live.live
            optimizer.step()
    return live.peak - before, num_bytes(_kept(parts)), bool(switching)


def _kept(parts: Iterable[Optimizer]) -> list[Tensor]:
    return [value for part in parts for kept in part.state.values() for value in kept.values() if isinstance(value, Tensor)]

"""The memory that a run will take, told beforehand: each phase is gone through with shapes alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .combined import parts_of
from .config import Config
from .config.optimizers import MUON, optimizer_class
from .engine import FUSED, Switching, choose_device, make_optimizer
from .errors import InputError
from .live import LiveTensors, num_bytes
from .rehearsal import Phase, Size, rehearse
from .session import Assembly
from .understudies import NotRehearsed, OptimizerBytes, OptimizerRates

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EDGE = 128
"""Rows and columns of the matrix that optimizers are tried on; large enough for those that keep little of small ones otherwise."""


@dataclass(frozen=True)
class Forecast:
    """Bytes on the device in each phase, and the size of samples that they are of; without phases `reason` says why.

    `unknown` are the encoders that could not be counted, for their configuration is not on this machine.
    """

    size: Size
    phases: tuple[Phase, ...]
    reason: str | None = None
    unknown: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """The most that the run takes."""
        return max((phase.peak for phase in self.phases), default=0)


def forecast(config: Config, cast: Assembly, size: Size) -> Forecast:
    """What a run takes with samples of this size; the plugins of `cast` are of no use for a real run afterwards."""
    rates = optimizer_rates(config)
    if rates is None:
        return Forecast(size, (), f"what {config.optimizer.type} keeps of each weight is only known where it can make a step")
    try:
        phases, unknown = rehearse(config, cast, size, rates)
        return Forecast(size, tuple(phases), unknown=tuple(unknown))
    except NotRehearsed as error:
        return Forecast(size, (), str(error))


def optimizer_rates(config: Config) -> OptimizerRates | None:
    """What the optimizer takes of each kind of weight, found by letting it make steps, on the run's device if that is here.

    What plugins train stays in fp32 where the model's weights are in bf16, and Muon leaves to AdamW what is no matrix of the
    trunk. None if no step can be made here. What a kernel makes for itself does not count, as nowhere in a forecast, even
    where it is written of other operations, as bitsandbytes' are for the CPU.
    """
    dtypes = {torch.float32, DTYPES[config.run.weights]}
    sides = (True, False) if config.optimizer.type == MUON else (None,)
    try:
        with torch.compiler.set_stance("force_eager"):  # torchao's would be compiled, which takes long and cannot be watched
            return {(dtype, side): _bytes_of(config, dtype, side) for dtype in dtypes for side in sides}
    except (InputError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError):
        return None  # it steps only on the device or the shapes that it is made for


def _bytes_of(config: Config, dtype: torch.dtype, use_muon: bool | None) -> OptimizerBytes:
    table = config.optimizer.model_copy(update={"fused_backward_pass": False, **_chosen_on_a_gpu(config)})
    device, has_one_for_each = _device(config), config.optimizer.fused_backward_pass

    def updated(count: int) -> tuple[int, int, bool]:
        weights = [nn.Parameter(torch.ones(EDGE, EDGE, dtype=dtype, device=device)) for _ in range(count)]  # prodigy keeps none of zeros
        return _updated(weights, make_optimizer([{"params": weights, **({} if use_muon is None else {"use_muon": use_muon})}], table))

    (one, _, _), (two, first, _), (four, all_kept, switches) = map(updated, (1, 2, 4))
    at_once = four > 1.5 * two and not has_one_for_each
    update = four / 4 if at_once else one if has_one_for_each else two  # what was made of one may be there while the next is updated
    kept, values = (all_kept - first) / 2, EDGE * EDGE  # without what all weights share
    return OptimizerBytes(kept / values, update / values, at_once, switches)


def _device(config: Config) -> torch.device:
    """The run's device, or the CPU where that is not here."""
    try:
        return choose_device(config.run.device)
    except InputError:
        return torch.device("cpu")


def _chosen_on_a_gpu(config: Config) -> dict[str, bool]:
    """What torch's optimizers choose for themselves on a GPU and not on the CPU: kernels that take all weights at once."""
    kind, given = optimizer_class(config.optimizer.type), config.optimizer.arguments
    is_torchs = kind.__module__.startswith("torch.optim") and kind.__name__ not in FUSED
    if config.is_for_cpu or config.device.type == "mps" or not is_torchs or {"foreach", "fused"} & given.keys():
        return {}
    return {"foreach": True} if "foreach" in inspect.signature(kind).parameters else {}


def _updated(weights: list[nn.Parameter], optimizer: Optimizer) -> tuple[int, int, bool]:
    """Bytes that came and went while these weights were updated, those that are kept of them, and whether two sets of weights are."""
    parts = parts_of(optimizer)
    switching = [part for part in parts if isinstance(part, Switching)]
    for part in switching:
        part.train()
    for _ in range(2):
        with LiveTensors() as live:
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            live.count((weights, _kept(parts)))
            live.since_now()
            before = live.live
            optimizer.step()
    return live.peak - before, num_bytes(_kept(parts)), bool(switching)


def _kept(parts: Iterable[Optimizer]) -> list[Tensor]:
    return [value for part in parts for kept in part.state.values() for value in kept.values() if isinstance(value, Tensor)]

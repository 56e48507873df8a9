"""What stands in for parts of a run that is rehearsed: they have shapes and take the memory of the real ones, and no values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .batch import Batch, FieldShape
from .config import Config
from .config.tables import RunTable
from .engine import Engine
from .errors import RunFailed
from .family import Family, FamilyPlugin
from .hooks import hookimpl
from .model import Model
from .plugin import Part
from .run import Run


class NotRehearsed(RunFailed):
    """The family does not say how its parts look without weights."""


class FamilyUnderstudy(FamilyPlugin[Any]):
    """Stands in for a family's plugin: what it loads has shapes and no values."""

    def __init__(self, plugin: FamilyPlugin[Any]) -> None:
        super().__init__(plugin.name, plugin.settings)
        self.plugin = plugin

    def family(self) -> Family:
        """That of the plugin."""
        return self.plugin.family()

    def field_shapes(self, config: Config, family: Family, frames: int, height: int, width: int) -> Mapping[str, FieldShape]:
        """Those of the plugin."""
        return self.plugin.field_shapes(config, family, frames, height, width)

    def rehearse_saving(self, run: Run) -> None:
        """As the plugin does it."""
        self.plugin.rehearse_saving(run)

    @hookimpl
    def load_model(self, run: Run, part: Part) -> Model:
        """An outline of the part; NotRehearsed where the plugin has none."""
        outline = self.plugin.outline(run, part)
        if outline is None:
            raise NotRehearsed(f"{run.family.name} does not tell how it looks without weights")
        return outline

    @hookimpl
    def encode_batch(self, run: Run, batch: Batch) -> Batch:
        """As the plugin does it."""
        encoded: Batch = self.plugin.encode_batch(run, batch)  # type: ignore[attr-defined]
        return encoded


class OptimizerBytes(NamedTuple):
    """Bytes for each trained weight: what is kept of it, and what comes and goes while it is updated.

    `at_once` says whether all weights are updated together, and not one after the other; `switches` whether the optimizer
    trains at other weights than those to use.
    """

    state: float
    update: float
    at_once: bool
    switches: bool


OptimizerRates: TypeAlias = Mapping[tuple[torch.dtype, "bool | None"], OptimizerBytes]
"""For each dtype, and for what a group says by `use_muon`."""


class OptimizerUnderstudy(Optimizer):
    """Keeps of each weight that is on the device as many bytes as the real optimizer, and makes no steps."""

    def __init__(self, groups: list[dict[str, Any]], rates: OptimizerRates) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.there: list[tuple[int, OptimizerBytes]] = []
        for group in groups:
            for weight in filter(takes_memory, group["params"]):
                each = rates[weight.dtype, group.get("use_muon")]
                self.there.append((weight.numel(), each))
                self.state[weight]["kept"] = torch.empty(round(weight.numel() * each.state), dtype=torch.uint8)

    def step(self, closure: Any = None) -> Any:
        """Take what an update takes for a moment."""
        together = sum(count * each.update for count, each in self.there if each.at_once)
        one = max((count * each.update for count, each in self.there if not each.at_once), default=0)
        torch.empty(round(max(together, one)), dtype=torch.uint8)


class SwitchingUnderstudy(OptimizerUnderstudy):
    """The same for an optimizer that keeps two sets of weights."""

    def train(self) -> None:
        """The weights have no values to exchange."""

    def eval(self) -> None:
        """Nor here."""


class EngineUnderstudy(Engine):
    """An engine on the CPU that prepares nothing; what would be fp16 is bf16, which has as many bytes."""

    def __init__(self, table: RunTable) -> None:
        precision = "bf16" if table.precision == "fp16" else table.precision
        super().__init__(table.model_copy(update={"device": "cpu", "precision": precision}))

    def prepare(self, trainable: nn.Module, optimizer: Optimizer) -> Any:
        """Take the optimizer as it is."""
        self.take(optimizer)
        return trainable


def takes_memory(tensor: Tensor) -> bool:
    """Whether a tensor is on the device: what `Run.host_copy` gives has less storage than elements."""
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.itemsize


@contextmanager
def modules_move() -> Iterator[None]:
    """Within the context `Module.to` and the like work on tensors without values: torch exchanges such by `swap_tensors`, which fails."""
    apply = nn.Module._apply
    nn.Module._apply = _apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = apply  # type: ignore[method-assign]


@torch.no_grad()
def _apply(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for child in self.children() if recurse else ():
        child._apply(function)  # type: ignore[no-untyped-call]
    for name, parameter in [*self.named_parameters(recurse=False)]:
        moved = function(parameter.data)
        if moved.device != parameter.device:  # from the meta device
            self._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        else:
            parameter.data = moved
    for name, buffer in self.named_buffers(recurse=False):
        self._buffers[name] = function(buffer)
    return self

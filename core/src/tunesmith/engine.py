"""accelerate at arm's length: device, precision, backward, clipping, and the optimizer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.optim import Optimizer

from .combined import FusedBackward, parts_of
from .config.optimizers import IMPLIED, MUON, optimizer_class
from .config.tables import OptimizerTable, RunTable, device_named
from .errors import InputError
from .model import Trainable, TrunkModule

FUSED = ("Adam", "AdamW")
"""Optimizers of torch.optim whose fused kernel is the fastest on every device, the CPU too."""


@runtime_checkable
class Switching(Protocol):
    """An optimizer that keeps two sets of weights: one to train at, and one to use."""

    def train(self) -> None:
        """Put the weights in place that are trained at."""

    def eval(self) -> None:
        """Put the weights in place that are to be used."""


def choose_device(wanted: str) -> torch.device:
    """The device for `[run] device`; InputError if it is not there.

    `auto` takes what torch detects: CUDA or ROCm (both are `cuda`), then MPS and other accelerators, then the CPU.
    """
    try:
        device = device_named(wanted)
    except RuntimeError as error:
        raise InputError(f"[run] device = {wanted!r} is no torch device; write auto, cpu, cuda, cuda:1 or mps") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found = accelerator.type if accelerator else "none"
    if device.type not in ("cpu", found):
        raise InputError(f"[run] device = {wanted!r} is not there; this machine's accelerator: {found}; auto takes the best there is")
    if device.index is not None and device.type != "cpu" and device.index >= torch.accelerator.device_count():
        raise InputError(f"[run] device = {wanted!r} is not there; this machine has {torch.accelerator.device_count()} of its kind")
    return device


def require_precision(table: RunTable, device: torch.device) -> None:
    """InputError if the device cannot compute in the precision that `[run]` asks for."""
    if table.precision == "fp16" and device.type == "cpu":
        raise InputError('[run] precision = "fp16" needs a GPU, and this run is on the CPU; use "bf16" or "no"')


def require_one_process(count: int) -> None:
    """InputError if a launcher started several."""
    if count > 1:
        raise InputError("this version trains on one process; start it with `tune run`, not with a launcher of several")


class Engine:
    """One run's accelerator: it prepares the trainable module and carries gradients to the optimizer.

    Placement is the core's business, so accelerate's own is off. Making an engine ends the one before it: accelerate
    keeps its state per process.
    """

    def __init__(self, table: RunTable) -> None:
        self.device = choose_device(table.device)
        require_precision(table, self.device)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.accelerator = Accelerator(mixed_precision=table.precision, cpu=self.device.type == "cpu", device_placement=False)
        require_one_process(PartialState().num_processes)
        self.update_was_skipped = False
        self._optimizer: Optimizer | None = None
        self._parameters: list[nn.Parameter] = []
        self._switching: list[Switching] = []
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; deterministic matrix products need it
        torch.use_deterministic_algorithms(table.deterministic)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return bool(self.accelerator.is_main_process)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer itself, not accelerate's wrapper."""
        if self._optimizer is None:
            raise RuntimeError("the optimizer exists only after `prepare`")
        return self._optimizer

    @property
    def optimizer_states(self) -> list[dict[Any, Any]]:
        """What is kept of each parameter, by parameter: one dict, or one for each optimizer that the run's is made of."""
        return [part.state for part in parts_of(self.optimizer)]

    @property
    def scaler(self) -> Any | None:
        """The gradient scaler of fp16, or None."""
        return self.accelerator.scaler

    def load_optimizer(self, state: dict[str, Any], table: OptimizerTable) -> None:
        """Take up an optimizer's state, with the learning rates and arguments that the config has now, left out ones too.

        An argument that is left out and None by default stays as it was: optimizers put there what they have chosen.
        """
        written, taken = {"initial_lr", *table.arguments}, signature(optimizer_class(table.type)).parameters.keys() - {"params", "lr"}
        made = [
            {key: value for key, value in group.items() if key in written or (key in taken and value is not None)}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state)
        for group, settings in zip(self.optimizer.param_groups, made, strict=True):
            group.update(settings)

    @property
    def trains_elsewhere(self) -> bool:
        """Whether the optimizer trains at other weights than those to use, as schedule-free ones do."""
        return bool(self._switching)

    @property
    def updates_in_backward(self) -> bool:
        """Whether weights change while the gradient is computed, so that all must be checked before."""
        return isinstance(self._optimizer, FusedBackward)

    @contextmanager
    def weights_to_use(self) -> Iterator[None]:
        """The weights as they are to be used within the context, and exactly as they are trained again after it."""
        if not self._switching:
            yield
            return
        trained = [parameter.detach().clone() for parameter in self._parameters]
        for part in self._switching:
            part.eval()
        try:
            yield
        finally:
            for part in self._switching:
                part.train()
            with torch.no_grad():  # to switch back and forth is not exact
                torch._foreach_copy_([*self._parameters], trained)

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the run; entered once per step, for its cache of cast weights lasts as long as the context."""
        if self.accelerator.mixed_precision == "no":
            return nullcontext()
        context: AbstractContextManager[None] = self.accelerator.autocast()
        return context

    def prepare(self, trainable: nn.Module, optimizer: Optimizer) -> Any:
        """Prepare module and optimizer; returns the module to call."""
        self.take(optimizer)
        prepared, self._wrapped = self.accelerator.prepare(trainable, optimizer)
        return prepared

    def take(self, optimizer: Optimizer) -> None:
        """Train with this optimizer from now on, at the weights that it trains at."""
        self._optimizer = optimizer
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._switching = [part for part in parts_of(optimizer) if isinstance(part, Switching)]
        for part in self._switching:
            part.train()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled up where fp16 needs it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def clip(self, table: OptimizerTable) -> Tensor:
        """Clip the gradients as `[optimizer]` says; returns their norm before clipping."""
        if self.scaler is not None:
            self.accelerator.unscale_gradients()
        if isinstance(self._optimizer, FusedBackward):
            return self._optimizer.take_norm()
        if table.clip_norm is not None:
            return nn.utils.clip_grad_norm_(self._parameters, table.clip_norm)
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        if table.clip_value is not None:
            nn.utils.clip_grad_value_(self._parameters, table.clip_value)
        return norm

    def set_rate(self, factor: float) -> None:
        """Scale the learning rates of the next update by `factor`; before backward, which may make it."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def update(self) -> None:
        """Step and clear the gradients.

        With fp16 the scaler skips the step if a gradient is not finite, and lowers its scale; `update_was_skipped` tells.
        """
        if self.scaler is None:
            self.optimizer.step()
        else:
            scale = self.scaler.get_scale()
            self._wrapped.step()
            self.update_was_skipped = self.scaler.get_scale() < scale
        self.optimizer.zero_grad(set_to_none=True)

    def peak_memory(self) -> int:
        """Bytes: the accelerator's peak, or this process's resident peak on a CPU."""
        if self.device.type == "cpu":
            return _resident_peak()
        return int(torch.accelerator.max_memory_allocated(self.device))


def _resident_peak() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def parameter_groups(trainable: Trainable, table: OptimizerTable, trunk: Sequence[TrunkModule] = ()) -> list[dict[str, Any]]:
    """What is trained, in groups of one learning rate and, for Muon, of matrices of the trunk or not.

    InputError if `lr_of` names what adds no module, or if Muon would have nothing to train.
    """
    odd = next((name for name in table.lr_of if name not in trainable.extra), None)
    if odd is not None:
        known = ", ".join(trainable.extra) or "no plugin does"
        raise InputError(
            f"[optimizer] lr_of: {odd!r} adds no module that is trained beside the model; those that do: {known}. What is trained of the "
            f"model itself, an adapter too, learns at `lr`"
        )
    own = {name: [one for one in trainable.extra[name].parameters() if one.requires_grad] for name in table.lr_of}
    apart = {id(parameter) for parameters in own.values() for parameter in parameters}
    rest = [one for one in trainable.parameters() if one.requires_grad and id(one) not in apart]
    groups: list[dict[str, Any]] = [{"params": rest}, *({"params": own[name], "lr": lr} for name, lr in table.lr_of.items())]
    if table.type == MUON:
        groups = _divided(groups, trunk)
    return [group for group in groups if group["params"]]


def _divided(groups: Iterable[dict[str, Any]], trunk: Sequence[TrunkModule]) -> list[dict[str, Any]]:
    """Each group as two: the matrices of the trunk, and everything else."""
    from .muon import matrices

    among = {id(weight) for weight in matrices(trunk)}
    divided = [
        {**group, "params": [one for one in group["params"] if (id(one) in among) is use_muon], "use_muon": use_muon}
        for use_muon in (True, False)
        for group in groups
    ]
    if not any(group["params"] for group in divided if group["use_muon"]):
        raise InputError(f'[optimizer] type = "{MUON}": nothing that is trained is a matrix of a block, which it is for; write "adamw"')
    return divided


def make_optimizer(parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], table: OptimizerTable) -> Optimizer:
    """The optimizer that `[optimizer]` describes, of parameters or groups; InputError with its own words if it refuses its arguments."""
    kind = optimizer_class(table.type)
    given_by_name = {**IMPLIED.get(table.type, {}), **table.arguments}
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in given_by_name.items()}
    if kind.__module__.startswith("torch.optim") and kind.__name__ in FUSED and not {"fused", "foreach"} & set(arguments):
        arguments["fused"] = True

    def make(groups: list[Any]) -> Optimizer:
        made: Optimizer = kind(groups, lr=table.lr, **arguments)
        return made

    given: Any = list(parameters)
    try:
        optimizer = FusedBackward(given, make, table.clip_value) if table.fused_backward_pass else make(given)
    except Exception as error:  # each library checks values in its own ways; all of them are told
        raise InputError(f"[optimizer] {table.type} refuses these arguments: {error}") from error
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer

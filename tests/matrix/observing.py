"""One run of the matrix as a test sees it: its micro-batches, what its blocks were given, and which weights it changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor, nn

from tunesmith import Loss, Model, Part, Run, Step, TrunkModule
from tunesmith.hooks import HookCaller

from .pretending import Pretended


class Call(NamedTuple):
    """A call of a block within `compute_loss` or its backward: of which micro-batch and block, and whether for a gradient."""

    position: int
    block: int
    for_gradient: bool


class Output(NamedTuple):
    """What came of a call, which a recomputation may leave before its end: how many tokens."""

    call: Call
    tokens: int


class Encoder(NamedTuple):
    """An encoder as it was loaded: what its weights are kept as, and how it takes samples."""

    dtypes: frozenset[torch.dtype]
    has_tiles: bool
    has_slices: bool


@dataclass
class Observed:
    """What was seen of a run; `before` are its weights before the first step."""

    runs: list[Run] = field(default_factory=list)
    steps: list[tuple[Step, Loss]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    encoders: dict[str, Encoder] = field(default_factory=dict)
    kernels: set[str] = field(default_factory=set)
    """What computed attention within blocks, for gradients."""
    pretended: Pretended = field(default_factory=Pretended)

    @property
    def run(self) -> Run:
        """The run."""
        [run] = self.runs
        return run

    def tokens(self, block: int, *, for_gradient: bool = True) -> set[int]:
        """How many tokens came out of a block."""
        return {tokens for call, tokens in self.outputs if (call.block, call.for_gradient) == (block, for_gradient)}

    def trained(self) -> set[str]:
        """Names of what requires a gradient."""
        return {name for name, parameter in named(self.run).items() if parameter.requires_grad}

    def changed(self) -> set[str]:
        """Names of the weights that are not what they were before the first step."""
        return {name for name, parameter in named(self.run).items() if not torch.equal(parameter, self.before[name])}

    def begin(self, run: Run) -> None:
        """Note a run's weights, and watch its blocks."""
        self.runs.append(run)
        self.before = {name: parameter.detach().clone() for name, parameter in named(run).items()}
        for number, block in enumerate(run.model.blocks):
            self.watch(run, number, block)

    def watch(self, run: Run, number: int, block: TrunkModule) -> None:
        """Note the calls of a block within steps, and what comes of them."""

        def call(step: Step) -> Call:
            return Call(step.position, number, torch.is_grad_enabled())

        def enter(module: Any, given: Any) -> None:
            if run.current is not None:
                self.calls.append(call(run.current))
                if torch.is_grad_enabled():
                    self.kernels.add(_AttentionBackendRegistry.get_active_backend()[0].value)

        def leave(module: Any, given: Any, out: Any) -> None:
            if run.current is not None:
                self.outputs.append(Output(call(run.current), (out if block.output is None else out[block.output]).shape[1]))

        block.module.register_forward_pre_hook(enter)
        block.module.register_forward_hook(leave)


def encoder(network: nn.Module) -> Encoder:
    """What is seen of an encoder."""
    tensors = (*network.parameters(), *network.buffers())
    return Encoder(
        frozenset(tensor.dtype for tensor in tensors), getattr(network, "use_tiling", False), getattr(network, "use_slicing", False)
    )


def named(run: Run) -> dict[str, torch.nn.Parameter]:
    """Every weight of the denoiser and of what plugins added."""
    return {**dict(run.model.denoiser.named_parameters()), **dict(run.model.extra.named_parameters(prefix="extra"))}


@contextmanager
def observing() -> Iterator[Observed]:
    """See the run within the context."""
    seen = Observed()
    compute, load = HookCaller.compute_loss, HookCaller.load_model

    def loading(self: HookCaller, run: Run, part: Part) -> Model:
        model = load(self, run, part)
        if part is Part.ENCODERS:
            seen.encoders |= {name: encoder(network) for name, network in model.encoders.items()}
        return model

    def watch(self: HookCaller, run: Run, step: Step) -> Loss:
        if run not in seen.runs:
            seen.begin(run)
        loss = compute(self, run, step)
        seen.steps.append((step, loss))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HookCaller, "compute_loss", watch)
        patch.setattr(HookCaller, "load_model", loading)
        yield seen

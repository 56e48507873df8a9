"""The CPU offload plugin: which networks take turns, and what else leaves the device while samples are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

from tunesmith import Batch, Config, Family, Lever, Model, Part, Plugin, Report, Run, Settings, Stage, Wrapper, hookimpl

from .moving import state_away
from .turns import Turns


class CpuOffloadSettings(Settings):
    """`[plugins.cpu_offload]`: what lies on the machine while it has nothing to do; the autoencoder always does so in validation."""

    encoders: bool = True
    """While captions, pixels and sound are encoded, the networks for that come to the device one at a time."""
    denoiser: bool = True
    """In validation the model leaves the device while another network encodes or decodes, and comes back for the next sample."""
    optimizer: bool = True
    """In validation the optimizer's state leaves the device."""


class CpuOffload(Plugin[CpuOffloadSettings]):
    """Keep whole networks on the machine but for their own work, and make room on the device for validation."""

    stage = Stage.PLACE
    levers = (Lever({"plugins.cpu_offload.enabled": True}, "networks are copied in and out around caching and validation", 0.04),)
    conflicts = MappingProxyType({"group_offload": "each decides where the weights of the model lie; keep it where a step does not fit"})

    def __init__(self, name: str, settings: CpuOffloadSettings) -> None:
        super().__init__(name, settings)
        self._turns: Turns | None = None
        self._trains = False
        self._validates = False

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """A configuration in which nothing would ever move."""
        if not self.settings.encoders and not samples_are_made(config):
            yield (
                ("plugins", self.name),
                f"without `encoders`, {self.name} acts in validation alone, and [validation] makes no samples: it would save nothing; "
                "set encoders = true, write validation prompts, or take this table out",
            )

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """What moves, and how often."""
        if config.device.type == "cpu":
            yield "the run computes on the CPU, where everything lies already: nothing moves"
            return
        if self.settings.encoders and not config.run.cache:
            yield "without a cache each encoder comes to the device and leaves it for every batch, which is slow"
        if self.settings.denoiser and samples_are_made(config):
            yield "the model leaves the device and comes back for every sample of validation"

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Leave the networks besides the model on the machine, from where they come by turns."""
        if part is Part.DENOISER:
            self.turns(run).rest()  # whoever encoded last, without a cache
            self._trains = True
        model = yield
        if (part is Part.ENCODERS and self.settings.encoders) or (part is Part.DECODER and self._validates):
            networks = model.encoders.values()
            for module in model.modules():
                if module in networks:
                    self.turns(run).join(module)
                else:
                    module.to(run.device)
            model.placed = True
        return model

    @hookimpl(wrapper=True)
    def encode_batch(self, run: Run, batch: Batch) -> Wrapper[Batch]:
        """Let the last encoder leave before the model computes; as long as the cache is filled it stays for the next batch."""
        try:
            encoded = yield
        finally:
            if self._trains:
                self.turns(run).rest()
        return encoded

    @hookimpl(wrapper=True)
    def validate(self, run: Run, report: Report) -> Wrapper[None]:
        """Make room on the device while samples are made, and put everything back, whatever happens."""
        with self._making_room(run):
            yield

    @contextmanager
    def _making_room(self, run: Run) -> Iterator[None]:
        if not run.previews and not run.is_rehearsal:
            yield
            return
        turns = self.turns(run)
        with ExitStack() as stack:
            if self.settings.optimizer:
                stack.enter_context(state_away(run.engine.optimizer_states, run))
            if self.settings.denoiser:
                stack.enter_context(turns.joined(run.model.denoiser))
            else:
                stack.enter_context(run.model.denoiser.register_forward_pre_hook(partial(_make_way, turns)))
                stack.callback(turns.rest)
            self._validates = True
            try:
                yield
            finally:
                self._validates = False

    def turns(self, run: Run) -> Turns:
        """The networks that take turns on the run's device."""
        if self._turns is None:
            self._turns = Turns(run)
        return self._turns


def samples_are_made(config: Config) -> bool:
    """Whether validation makes anything, and is ever due."""
    table = config.validation
    return bool(config.prompts or table.samples or table.dataset_samples) and bool(table.every or table.at_start or table.at_end)


def _make_way(turns: Turns, *_: Any) -> None:
    turns.rest()

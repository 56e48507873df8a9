"""The EMA plugin: an average that follows what is trained, takes its place in validation, and is saved beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from tunesmith import Config, Family, Model, Part, Plugin, Report, Run, Settings, Stage, Step, Wrapper, hookimpl, sample_all

from .average import Average

WARM = 10
"""With `warmup` the decay of step n is (1 + n) / (WARM + n) at most."""


class EmaSettings(Settings):
    """`[plugins.ema]`: how long the average remembers, where it lies, and what validation looks at."""

    may_change: ClassVar[frozenset[str]] = frozenset({"validate_with"})

    decay: float = Field(0.999, ge=0, lt=1)
    """Share of the average that a step leaves as it is: 0.999 remembers about the last 1,000 steps."""
    warmup: bool = True
    """Let the decay rise as (1 + n) / (10 + n) with the steps n until it is reached, so that the beginning is soon forgotten."""
    every: int = Field(1, ge=1, le=100_000)
    """Steps between two updates; each counts for all of them, so that the average remembers as long."""
    device: Literal["cpu", "run"] = "cpu"
    """Where the average lies: in the machine's memory, or with the model, where updates are faster."""
    validate_with: Literal["average", "weights", "both"] = "average"
    """What makes the samples of validation; of `both`, those of the weights as they are trained are named `...-trained`."""


class Ema(Plugin[EmaSettings]):
    """Keep an exponential moving average of everything that is trained, in fp32 (Polyak and Juditsky, 1992)."""

    stage = Stage.AVERAGE

    def __init__(self, name: str, settings: EmaSettings) -> None:
        super().__init__(name, settings)
        self._average: Average | None = None
        self._saves_average = False

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """Where the average takes memory, and that it would stay what was loaded."""
        steps = config.run.steps
        if steps is not None and self.settings.every > steps:
            yield f"every = {self.settings.every}: no update is due within {steps} steps, so the average stays what was loaded"
        where = "the machine's memory" if self.settings.device == "cpu" else "the memory of the device"
        yield f"the average takes 4 bytes of {where} for every trained weight"

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Begin with the weights as they were loaded."""
        model = yield
        if part is Part.DENOISER:
            self._average = Average(trained(model), run.host_copy if self.settings.device == "cpu" else run.device_copy)
        return model

    @hookimpl
    def on_step(self, run: Run, step: Step) -> None:
        """Let the average follow, where an update is due."""
        if run.step % self.settings.every == 0:
            self.average.follow(trained(run.model), decay_at(run.step, self.settings))

    @hookimpl(wrapper=True)
    def validate(self, run: Run, report: Report) -> Wrapper[None]:
        """Make the samples with the average, with the weights as they are trained, or with both."""
        if self.settings.validate_with == "weights":
            yield
            return
        with self._in_place(run):
            yield
        report.media[:] = [replace(media, recipe={**media.recipe, "weights": self.name}) for media in report.media]
        if self.settings.validate_with == "both":
            other = Report(report.step)
            sample_all(run, other)
            report.media += [replace(media, name=f"{media.name}-trained") for media in other.media]

    @hookimpl(wrapper=True)
    def save_checkpoint(self, run: Run, path: Path) -> Wrapper[None]:
        """Save the average below `ema/`, in the files in which what is trained is saved beside it."""
        yield
        if self._saves_average:
            return
        self._saves_average = True
        folder = path / self.name
        folder.mkdir()
        try:
            with self._in_place(run):
                run.hooks.save_checkpoint(run, folder)
        finally:
            self._saves_average = False

    def rehearse_saving(self, run: Run) -> None:
        """Put the average in place of the weights, as for saving it."""
        with self._in_place(run):
            pass

    @property
    def average(self) -> Average:
        """The average; RuntimeError before the model is loaded."""
        if self._average is None:
            raise RuntimeError("there is no average before the model is loaded")
        return self._average

    def state_dict(self) -> dict[str, Any]:
        """The average in fp32, by the names of the weights."""
        return dict(self.average.values)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the saved average."""
        self.average.take_up(state)

    @contextmanager
    def _in_place(self, run: Run) -> Iterator[None]:
        with self.average.in_place_of(trained(run.model)):
            yield


def trained(model: Model) -> dict[str, nn.Parameter]:
    """What is trained, by name: parameters of the denoiser and of the modules that plugins add."""
    named = [*model.denoiser.named_parameters(prefix="denoiser"), *model.extra.named_parameters(prefix="extra")]
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def decay_at(step: int, settings: EmaSettings) -> float:
    """The share of the average that an update after so many steps leaves: the decay of one step, to the power of `every`."""
    decay = min(settings.decay, (1 + step) / (WARM + step)) if settings.warmup else settings.decay
    return decay**settings.every

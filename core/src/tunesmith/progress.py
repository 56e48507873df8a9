"""What a run shows while it runs: bars and a live line on a terminal, plain lines elsewhere, events as JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Protocol, TextIO, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from .events import Event

Mode: TypeAlias = Literal["auto", "quiet", "json"]

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines of one stage."""
LIVE_SECONDS = 0.1
"""Seconds between two updates of a bar."""
BAR_WIDTH = 110
"""Columns from which on a terminal has room for a bar beside the numbers, which wrap where it is narrower."""
GIB = 2**30


class Bar(Protocol):
    """A stage that advances."""

    def advance(self, n: int = 1) -> None:
        """Count `n` more items as done."""


class Progress:
    """The screen of one run; a context manager, so that the terminal is whole again whatever happens.

    `auto` shows bars where `stream` (stderr when not given) is a terminal and plain lines elsewhere, `quiet` only
    results, `json` only events. Results and events go to `output`, stdout when not given.
    """

    def __init__(self, mode: Mode = "auto", stream: TextIO | None = None, output: TextIO | None = None) -> None:
        self.mode = mode
        self.stream = stream or sys.stderr
        self.output = output or sys.stdout
        self._training: _Training | None = None
        self._console = Console(file=self.stream, highlight=False, markup=False, soft_wrap=True)
        self._bars: Bars | None = None

    def __enter__(self) -> Progress:
        if self.mode == "auto" and self.stream.isatty() and not self._console.is_dumb_terminal:
            columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}", markup=False, table_column=Column())]
            if self._console.width >= BAR_WIDTH:
                columns.append(BarColumn(bar_width=24))
            self._bars = Bars(*columns, console=self._console, refresh_per_second=1 / LIVE_SECONDS, transient=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def message(self, text: str) -> None:
        """Tell something on the way; not in quiet or json mode."""
        if self.mode == "auto":
            self._console.print(Text(text))

    def result(self, text: str) -> None:
        """Tell what the run came to, in quiet mode too; in json mode the events tell it."""
        if self.mode != "json":
            self.output.write(text + "\n")
            self.output.flush()

    def event(self, event: Event) -> None:
        """In json mode, write the event as its one line."""
        if self.mode == "json":
            self.output.write(event.line() + "\n")
            self.output.flush()

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Bar]:
        """A part of the run with so many items, None where nobody knows; advance what it yields."""
        stage = _Stage(self._display(title, total, 0), total)
        with stage.display:
            yield stage
            stage.finish()

    @contextmanager
    def training(self, total: int, start: int) -> Iterator[None]:
        """The training loop from step `start` to step `total`; call `step` in it."""
        self._training = _Training(self._display("training", total, start), total, start)
        try:
            with self._training.display:
                yield
                self._training.finish()
        finally:
            self._training = None

    def step(
        self,
        step: int,
        loss: float | None = None,
        average: float | None = None,
        learning_rate: float | None = None,
        rate: float | None = None,
        memory: int | None = None,
    ) -> None:
        """`step` optimizer steps are done. What is None keeps its last value; `rate` is in steps per second, `memory` in bytes.

        Costs about a microsecond where nothing is due. RuntimeError outside of `training`.
        """
        if self._training is None:
            raise RuntimeError("Progress.step was called outside of Progress.training")
        self._training.step(step, loss, average, learning_rate, rate, memory)

    def _display(self, title: str, total: int | None, done: int) -> _Display:
        if self.mode != "auto":
            return _Display()
        if self._bars is not None:
            return _BarDisplay(self._bars, title, total, done)
        return _LineDisplay(self._console, title, total)


class _Display:
    """Where a stage shows itself: nowhere."""

    seconds = float("inf")

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def show(self, done: int, detail: str) -> None:
        """Show how far the stage is."""


class _LineDisplay(_Display):
    """A line of text now and then."""

    seconds = PLAIN_SECONDS

    def __init__(self, console: Console, title: str, total: int | None) -> None:
        self.console = console
        self.title = title
        self.total = total

    def show(self, done: int, detail: str) -> None:
        self.console.print(Text(self.line(done, detail)))

    def line(self, done: int, detail: str) -> str:
        """Title, count and detail."""
        count = str(done) if self.total is None else f"{done}/{self.total}"
        return f"{self.title}: {count}  {detail}".rstrip()


class _BarDisplay(_LineDisplay):
    """A line that changes in place, with a bar where there is room, and stays when it is done.

    The display is live only while a stage is open, so that nothing is written across it.
    """

    seconds = LIVE_SECONDS

    def __init__(self, bars: Bars, title: str, total: int | None, done: int) -> None:
        super().__init__(bars.console, title, total)
        self.bars = bars
        self.shown = self.line(done, "")
        self.task: TaskID = bars.add_task(self.shown, total=total, completed=done)
        bars.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.remove_task(self.task)
        if not self.bars.tasks:
            self.bars.stop()
        self.console.print(Text(self.shown))

    def show(self, done: int, detail: str) -> None:
        self.shown = self.line(done, detail)
        self.bars.update(self.task, completed=done, description=self.shown)


class _Pace:
    """When something is due, and how fast it goes: the pace is that of the last half minute or so."""

    WINDOW = 30.0

    def __init__(self, seconds: float, done: int) -> None:
        self.seconds = seconds
        self.began = self.marked = time.monotonic()
        self.due = self.began  # the first item is shown at once
        self.from_done = done
        self.previous: tuple[float, int] | None = None

    def is_due(self) -> bool:
        """Whether it is time again; if so, the next time is `seconds` from now."""
        now = time.monotonic()
        if now < self.due:
            return False
        self.due = now + self.seconds
        return True

    def rate(self, done: int) -> float:
        """Items per second."""
        now = time.monotonic()
        if now - self.marked > self.WINDOW:
            self.previous, self.marked = (self.began, self.from_done), now
            self.began, self.from_done = now, done
        since, then = self.previous or (self.began, self.from_done)
        return (done - then) / max(now - since, 1e-9)


class _Stage:
    """A stage that counts items."""

    def __init__(self, display: _Display, total: int | None) -> None:
        self.display = display
        self.total = total
        self.done = 0
        self.shown = -1
        self.pace = _Pace(display.seconds, 0)

    def advance(self, n: int = 1) -> None:
        self.done += n
        if self.pace.is_due():
            self.show()

    def finish(self) -> None:
        if self.shown != self.done:
            self.show()

    def show(self) -> None:
        """Show how many are done, how fast, and when the rest will be."""
        self.shown = self.done
        rate = self.pace.rate(self.done)
        parts = [f"{rate:.1f}/s"] if self.done else []
        if self.total is not None and self.done < self.total and rate > 0:
            parts.append(f"ETA {duration((self.total - self.done) / rate)}")
        self.display.show(self.done, "  ".join(parts))


class _Training:
    """The training loop: the last known value of everything that is shown."""

    def __init__(self, display: _Display, total: int, start: int) -> None:
        self.display = display
        self.total = total
        self.done = start
        self.shown = start
        self.loss: float | None = None
        self.average: float | None = None
        self.learning_rate: float | None = None
        self.memory: int | None = None
        self.pace = _Pace(display.seconds, start)

    def step(
        self, step: int, loss: float | None, average: float | None, learning_rate: float | None, rate: float | None, memory: int | None
    ) -> None:
        """Take in what is known of a step, None where it is what it was, and show it if that is due."""
        self.done = step
        self.loss = self.loss if loss is None else loss
        self.average = self.average if average is None else average
        self.learning_rate = self.learning_rate if learning_rate is None else learning_rate
        self.memory = self.memory if memory is None else memory
        if self.pace.is_due():
            self.show(rate)

    def finish(self) -> None:
        if self.shown != self.done:
            self.show(None)

    def show(self, rate: float | None) -> None:
        """Show all that is known; `rate` is in steps a second, measured here where it is None."""
        self.shown = self.done
        rate = self.pace.rate(self.done) if rate is None else rate
        parts = [f"loss {self.loss:.4f}"] if self.loss is not None else []
        if self.average is not None:
            parts.append(f"average {self.average:.4f}")
        if self.learning_rate is not None:
            parts.append(f"lr {self.learning_rate:.2e}")
        parts.append(f"{rate:.2f} it/s")
        if rate > 0 and self.done < self.total:
            parts.append(f"ETA {duration((self.total - self.done) / rate)}")
        if self.memory is not None:
            parts.append(f"{self.memory / GIB:.1f} GiB")
        self.display.show(self.done, "  ".join(parts))


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

"""What a run shows: bars on a terminal, now and then a line elsewhere, only events as JSON, only results when quiet."""

from __future__ import annotations

import io
import json
import re
import time

import pytest

from tunesmith.events import Event
from tunesmith.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Time that goes on only when told to."""

    class Clock:
        now = 1000.0

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    made = Clock()
    monkeypatch.setattr("tunesmith.progress.time.monotonic", lambda: made.now)
    return made


def show(mode: str = "auto") -> tuple[Progress, io.StringIO, io.StringIO]:
    stream, output = io.StringIO(), io.StringIO()
    return Progress(mode, stream, output), stream, output  # type: ignore[arg-type]


def test_without_a_terminal_a_stage_is_a_line_every_ten_seconds_with_rate_and_time_left(clock):
    shown, stream, output = show()
    with shown, shown.stage("encoding latents", 100) as stage:
        for _ in range(100):
            clock.sleep(0.25)
            stage.advance()
    assert stream.getvalue().splitlines() == [
        "encoding latents: 1/100  4.0/s  ETA 0:00:25",
        "encoding latents: 41/100  4.0/s  ETA 0:00:15",
        "encoding latents: 81/100  4.0/s  ETA 0:00:05",
        "encoding latents: 100/100  4.0/s",
    ]
    assert output.getvalue() == ""


def test_a_stage_of_unknown_length_counts(clock):
    shown, stream, _ = show()
    with shown, shown.stage("looking", None) as stage:
        clock.sleep(1)
        stage.advance(5)
    assert stream.getvalue() == "looking: 5  5.0/s\n"


def test_training_shows_everything_it_knows_and_ends_with_the_last_step(clock):
    shown, stream, _ = show()
    with shown, shown.training(30, 10):
        for step in range(11, 31):
            clock.sleep(1)
            shown.step(step, 1 / step, 0.5, 1e-4, memory=3 * 2**29)
    assert stream.getvalue().splitlines() == [
        "training: 11/30  loss 0.0909  average 0.5000  lr 1.00e-04  1.00 it/s  ETA 0:00:19  1.5 GiB",
        "training: 21/30  loss 0.0476  average 0.5000  lr 1.00e-04  1.00 it/s  ETA 0:00:09  1.5 GiB",
        "training: 30/30  loss 0.0333  average 0.5000  lr 1.00e-04  1.00 it/s  1.5 GiB",
    ]


def test_what_a_step_does_not_say_keeps_its_last_value(clock):
    shown, stream, _ = show()
    with shown, shown.training(3, 0):
        shown.step(1, 2.0, 3.0, 4.0)
        clock.sleep(20)
        shown.step(2, rate=7)
    assert stream.getvalue().splitlines()[-1] == "training: 2/3  loss 2.0000  average 3.0000  lr 4.00e+00  7.00 it/s  ETA 0:00:00"


def test_the_rate_is_that_of_lately_and_not_of_the_whole_stage(clock):
    shown, stream, _ = show()
    with shown, shown.stage("uneven", 10_000) as stage:
        for _ in range(100):
            clock.sleep(1)
            stage.advance()
        for _ in range(100):
            clock.sleep(1)
            stage.advance(10)
    assert "200" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].startswith("uneven: 1100/10000  10.0/s")


def test_a_failure_in_a_stage_passes_through_and_claims_no_end(clock):
    shown, stream, _ = show()

    def fail() -> None:
        with shown, shown.stage("encoding", 9) as stage:
            stage.advance()
            stage.advance()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == ["encoding: 1/9"]


def test_json_mode_writes_each_event_as_one_line_and_nothing_else(clock):
    shown, stream, output = show("json")
    with shown, shown.stage("encoding", 3) as stage:
        stage.advance()
        shown.message("hello")
        with shown.training(2, 0):
            shown.step(1, 0.5)
        shown.event(Event("step", 1, {"loss": 0.5}, time=3.0))
        shown.event(Event("end", 1, {"note": "two\nlines"}, time=4.0))
        shown.result("done")
    assert stream.getvalue() == ""
    assert [json.loads(line) for line in output.getvalue().splitlines()] == [
        {"event": "step", "step": 1, "time": 3.0, "loss": 0.5},
        {"event": "end", "step": 1, "time": 4.0, "note": "two\nlines"},
    ]


def test_quiet_mode_prints_the_result_only(clock):
    shown, stream, output = show("quiet")
    with shown, shown.training(2, 0):
        shown.step(1, 0.5)
        shown.message("hello")
        shown.event(Event("end", 1))
        shown.result("done")
    assert (stream.getvalue(), output.getvalue()) == ("", "done\n")


def test_messages_are_neither_wrapped_nor_read_as_markup():
    shown, stream, _ = show()
    text = "[bold]x[/bold] " + "word " * 60 + "end"
    with shown:
        shown.message(text)
    assert stream.getvalue() == text + "\n"


def test_on_a_terminal_bars_come_and_go_and_leave_one_line_each(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    with Progress("auto", stream, io.StringIO()) as shown, shown.training(2, 0):
        clock.sleep(1)
        shown.step(1, 0.25)
        with shown.stage("validation", 2) as stage:
            stage.advance(2)
        shown.message("in between [b]")
        clock.sleep(1)
        shown.step(2, 0.125)
        assert shown._bars is not None
        assert [task.description.partition(":")[0] for task in shown._bars.tasks] == ["training"]
    written = stream.getvalue()
    assert "in between [b]" in written
    assert written.count("validation: 2/2") == 1
    assert "training: 2/2  loss 0.1250" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_a_narrow_terminal_loses_the_bar_and_none_of_the_numbers(clock, monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    stream = Terminal()
    with Progress("auto", stream, stream) as shown, shown.training(60_000, 0):
        clock.sleep(1)
        shown.step(31_000, 0.0323, 0.5, 1e-4, memory=2**30)
        assert shown._bars is not None
        shown._bars.refresh()
        live = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).split())
        for number in ("31000/60000", "loss 0.0323", "average 0.5000", "1.00e-04", "1.0 GiB"):
            assert number in live
        assert ("\u2501" in live) is (columns == "200")


def test_a_result_stands_on_a_line_of_its_own(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress("auto", stream, stream) as shown:
        with shown.stage("x", 1) as stage:
            stage.advance()
        shown.result("the result")
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "").endswith("/s\nthe result\n")


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress("auto", stream, io.StringIO()) as shown, shown.stage("x", 1) as stage:
        clock.sleep(1)
        stage.advance()
    assert stream.getvalue() == "x: 1/1  1.0/s\n"


def test_a_step_outside_of_training_is_a_bug():
    with pytest.raises(RuntimeError, match=r"outside of Progress\.training"):
        show()[0].step(1)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_costs_less_than_fifty_microseconds_when_nothing_is_due(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal() if terminal else io.StringIO()
    count = 2000
    best = float("inf")
    with Progress("auto", stream, io.StringIO()) as shown, shown.training(10 * count, 0):
        for _ in range(5):
            start = time.perf_counter()
            for step in range(count):
                shown.step(step, 0.5, 0.5, 1e-4)
            best = min(best, (time.perf_counter() - start) / count)
    assert best < 50e-6


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360_000, "100:00:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text

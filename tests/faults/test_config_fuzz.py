"""Whatever stands in a config, `tune` answers with a message and exit code 2 or with a plan; it neither fails, hangs nor writes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import FrameType

import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tunesmith import InputError, discovery, plan
from tunesmith.cli.app import main
from tunesmith.config import load_config
from tunesmith.forecast import Forecast
from tunesmith.plan import make_plan

from .mutations import BASE, VALUES, configs, overrides

PATIENCE = 20
"""Seconds after which an example counts as hanging."""


def fuzzing(examples: int) -> settings:
    """The same examples each time, and no limit but our own."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )


@pytest.fixture(scope="module")
def place(twin: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the base config names; the working directory while the module is tested, and off line.

    What is installed stays the same meanwhile, and is looked for once.
    """
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(twin, folder / "twin")
    shutil.copytree(pictures, folder / "pictures")
    (folder / "prompts.json").write_text('{"green": "a green square"}')
    (folder / "broken.json").write_text('{"green": ')
    (folder / "exits.py").write_text("import sys\nsys.exit(1)\n")
    (folder / "loop").symlink_to("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(plan, "foretell", lambda config, cast, largest: Forecast(largest.size, (), "not now"))  # it has tests of its own
        patch.setattr(discovery, "_announced", cache(lambda group, found=discovery._announced: tuple(found(group))))
        yield folder


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for parent, _, names in os.walk(folder):
        for name in (".", *names):
            status = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (status.st_mtime_ns, status.st_size)
    return found


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no answer within {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(place: Path, text: str | bytes, sets: Sequence[str] = ()) -> str:
    """`plan` or the message; fails on anything but these, and if anything was written."""
    file = place / "fuzz.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = tree(place)
    try:
        with no_hang():
            plan = make_plan(load_config(file, sets))
            json.dumps(plan.as_json(), default=str).encode()
            Console(file=io.StringIO()).print(plan.render())
        told = "\n".join(map(str, plan.problems)) or "plan"
    except InputError as error:
        told = str(error).strip()
    assert told
    assert tree(place) == before
    return told


def check_command(place: Path, text: str, sets: Sequence[str]) -> None:
    """The same through the command line."""
    (place / "fuzz.toml").write_text(text, newline="")
    before = tree(place)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")]
    arguments = ["tune", "plan", "fuzz.toml", *(part for one in sets for part in ("--set", one))]
    with pytest.MonkeyPatch.context() as patch, no_hang():
        patch.setattr(sys, "argv", arguments)
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as left:
            main()
        for stream in streams:
            stream.flush()
    code = left.value.code or 0
    out, err = (stream.buffer.getvalue().decode() for stream in streams)
    assert (code, bool(out), bool(err)) in [(0, True, False), (2, False, True)], err
    assert "Traceback" not in err
    assert tree(place) == before


def test_the_config_that_is_spoilt_is_right(place):
    assert answer(place, BASE) == "plan"


@pytest.mark.parametrize(
    "override",
    [
        *("run.steps=1" + "0" * 400, "run.gradient_accumulation=1" + "0" * 400, "datasets.0.repeats=9223372036854775808"),
        *("datasets.0.variants=1000000000000", f"datasets.0.path='{'x' * 300}'", f"model.path='{'a/' * 3000}'", "datasets.0.path='loop'"),
        *("optimizer.type='torch.optim.LBFGS'", "optimizer.type='exits.Lion'", "validation.prompts.red=\udcff"),
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_what_once_failed_or_hung_is_refused(place, monkeypatch, override):
    monkeypatch.syspath_prepend(str(place))
    assert answer(place, BASE, [override]) != "plan"


@pytest.mark.parametrize("examples", [1_000, pytest.param(10_000, marks=pytest.mark.matrix)])
def test_spoilt_configs_are_refused_with_a_message_or_planned(place, examples):
    answers: list[str] = []

    @fuzzing(examples)
    @given(configs(), st.lists(overrides(), max_size=1))
    def fuzz(text: str, sets: list[str]) -> None:
        answers.append(answer(place, text, sets))

    fuzz()
    planned = sum(told == "plan" for told in answers)
    assert 0.02 < planned / len(answers) < 0.9  # the mutations neither spoil everything nor nothing


def test_spoilt_configs_end_the_command_with_0_or_2(place):
    @fuzzing(40)
    @given(configs(), st.lists(overrides(), max_size=2))
    def fuzz(text: str, sets: list[str]) -> None:
        check_command(place, text, sets)

    fuzz()


def test_bytes_that_are_no_config_are_refused(place):
    @fuzzing(60)
    @given(st.binary(max_size=200) | st.binary(max_size=5).map(lambda noise: BASE.encode()[:700] + noise + BASE.encode()[700:]))
    def fuzz(content: bytes) -> None:
        answer(place, content)

    fuzz()


@pytest.mark.parametrize("part", [8, pytest.param(1, marks=pytest.mark.matrix)])
def test_odd_values_in_every_setting_are_refused_with_a_message_or_planned(place, part):
    """Each setting with every value; those of numbers and booleans with one in eight, which are others for the next setting."""
    for number, setting in enumerate(re.finditer(r"^[a-z_]+ = (.*)$", BASE, re.MULTILINE)):
        values = VALUES if setting[1][0] in "\"'[{" else VALUES[number % part :: part]
        for value in values:
            answer(place, BASE[: setting.start(1)] + value + BASE[setting.end(1) :])

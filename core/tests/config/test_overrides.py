"""`--set` goes through the same checks as the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.config import ConfigErrors, load_config
from tunesmith.config.datasets import SampleTable
from tunesmith.config.overrides import apply

GOOD = '[run]\nsteps = 10\n[model]\nfamily = "toyfamily"\n[[datasets]]\npath = "a"\n[[datasets]]\npath = "b"\n'


@pytest.fixture
def config(toy, tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(GOOD)
    return path


def told(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load_config(path, overrides)
    return [line.removeprefix(f"{path.parent}/") for line in str(caught.value).splitlines()]


def test_settings_of_the_file_are_replaced_and_others_added(config):
    numbers = ["run.steps=3", "datasets.1.repeats = 2", "optimizer.betas=[0.8, 0.9]"]
    loaded = load_config(config, [*numbers, "noise.shift=auto", 'plugins."toyloss".pattern=a.b c', "run.name=x"])
    assert loaded.run.steps == 3
    assert [dataset.repeats for dataset in loaded.datasets if isinstance(dataset, SampleTable)] == [1, 2]
    assert loaded.noise.shift == "auto"
    assert loaded.optimizer.arguments == {"betas": [0.8, 0.9]}
    assert loaded.plugins["toyloss"].pattern == "a.b c"  # type: ignore[attr-defined]
    assert loaded.run_name == "x"
    assert loaded.data["run"] == {"steps": 3, "name": "x"}
    assert loaded.text == GOOD


def test_the_last_of_two_wins(config):
    assert load_config(config, ["run.steps=3", "run.steps=4"]).run.steps == 4


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("run.stepz=10", "--set run.stepz=10: [run] unknown setting 'stepz'; did you mean 'steps'?"),
        ("run.steps=ten", "--set run.steps=ten: [run] steps = 'ten': should be a whole number"),
        ("run={steps=0}", "--set run={steps=0}: [run] steps = 0: should be at least 1"),
        ("run=3", "--set run=3: [run] 3 stands where a table should be; write [run] and its settings below it"),
        ("datasets.2.repeats=1", "--set datasets.2.repeats=1: datasets is an array of 2, counted from 0; it has no '2'"),
        ("datasets.x.repeats=1", "--set datasets.x.repeats=1: datasets is an array of 2, counted from 0; it has no 'x'"),
        ("datasets.1.repeats=0", "--set datasets.1.repeats=0: [[datasets]] repeats = 0: should be at least 1"),
        ("run.steps.x=1", "--set run.steps.x=1: run.steps is no table, so it has no 'x'"),
        ("run.steps", "--set run.steps: should be KEY=VALUE, such as run.steps=10 or datasets.0.repeats=2"),
        ("=1", "--set =1: should be KEY=VALUE, such as run.steps=10 or datasets.0.repeats=2"),
        ("a b=1", "--set a b=1: should be KEY=VALUE, such as run.steps=10 or datasets.0.repeats=2"),
        ("plugins.toyloss.weight=9", "--set plugins.toyloss.weight=9: [plugins.toyloss] weight = 9: should be at most 2"),
        ("run.pre\x1bn=1", "--set 'run.pre\\x1bn=1': should be KEY=VALUE, such as run.steps=10 or datasets.0.repeats=2"),
        ("loss.type=a\x1b[1mb", "--set 'loss.type=a\\x1b[1mb': [loss] type = 'a\\x1b[1mb': should be 'l2', 'huber' or 'smooth_l1'"),
    ],
)
def test_problems_name_the_override_and_not_a_line(config, override, problem):
    text = "[plugins.toyloss]\npattern = ''\n"
    config.write_text(GOOD + text)
    assert told(config, override) == [problem]


def test_a_setting_that_an_override_makes_necessary_is_blamed_on_it(config):
    [line] = told(config, "plugins.toyloss.weight=1")
    assert line.startswith("--set plugins.toyloss.weight=1: [plugins.toyloss] missing setting 'pattern'")


def test_problems_of_the_file_come_before_those_of_overrides(config):
    config.write_text(GOOD.replace("steps = 10", "steps = 10\nseed = -1"))
    lines = told(config, "run.batch_size=0", "nonsense")
    assert [line.partition(": ")[0] for line in lines] == ["c.toml:3", "--set nonsense", "--set run.batch_size=0"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("1.5", 1.5), ("true", True), ("'1'", "1"), ("[1, 2]", [1, 2]), ("{ a = 1 }", {"a": 1}), ("", ""), ("bf16", "bf16"),
        ("1\ny = 2", "1\ny = 2"), ("a=b", "a=b"), ("1" * 5000, "1" * 5000), ("[" * 5000, "[" * 5000),
    ],
)  # fmt: skip
def test_values_are_toml_or_else_text(text: str, value: Any):
    data: dict[str, Any] = {}
    apply(f"k.v={text}", data)
    assert data == {"k": {"v": value}}

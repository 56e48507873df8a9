"""Every family with each thing that saves memory, in every pair with another and with each that changes what is learnt.

A pair is refused by name, or it trains on a device that forgets what has left it, shows that both are on, and has the losses of
the run without those of the two that change no number. All are marked `matrix`, and run by `make matrix`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import pytest
import torch
from safetensors.torch import load_file

from tests.runs.conftest import Result
from tunesmith import Modality
from tunesmith.config import ConfigErrors

from .conftest import Matrix
from .features import FEATURES, STEPS, assert_updates_belong
from .saving import SHOWS
from .stage import FAMILIES, NUM_FRAMES
from .switches import LEARNING, SWITCHES, Switch, are_alternatives, refusals, settings

COMMON = ("datasets.0.caption_dropout=0.0",)
"""A prompt of a single token gets all the attention there is, and with it what computes that no gradient, in as few steps."""
BESIDE = "validation."
"""How settings begin that no loss depends on, and that a run to compare with is made without."""
ROUNDING = 2**-8
"""What another order of sums may change where weights and hidden states are in bf16."""
SHORT = ("run.steps=2", "checkpoints.every=false")


def cases() -> list[object]:
    """A family and one or two that are on; those that exclude each other as they are written are no pair."""
    pairs = [*combinations(SWITCHES.values(), 2), *((one, other) for one in SWITCHES.values() for other in LEARNING.values())]
    asked = [(family, on) for family in FAMILIES for on in (*((one,) for one in SWITCHES.values()), *pairs)]
    return [
        pytest.param(family, on, id=f"{family}-{name_of(on)}", marks=pytest.mark.matrix)
        for family, on in asked
        if len(on) == 1 or not are_alternatives(family, *on)
    ]


def name_of(on: Sequence[Switch]) -> str:
    """What a run with these on is called."""
    return "-".join(sorted(one.name for one in on))


@pytest.mark.parametrize(("family", "on"), cases())
def test_it_is_refused_by_name_or_trains_and_changes_no_number_that_it_need_not(matrix: Matrix, family: str, on: Sequence[Switch]) -> None:
    features = frozenset(one.name for one in on if one.name in FEATURES)
    frames = (f"validation.num_frames={NUM_FRAMES}",) if matrix.stage_of(family).modality is Modality.VIDEO else ()
    asked, name = (*COMMON, *frames, *settings(family, on)), name_of(on)
    expected = refusals(family, on)
    if expected:
        with pytest.raises(ConfigErrors) as refused:
            matrix.train_pretending(family, features, name, asked)
        for words in expected:
            assert any(all(word in str(problem) for word in words) for problem in refused.value.problems), str(refused.value)
        assert not (matrix.stage_of(family).folder / "runs" / name).exists()
        return
    is_resumed = "resume" in features
    result, seen = matrix.train_pretending(family, features, name, asked if is_resumed else (*SHORT, *asked))
    assert sorted(result.losses) == [*range(1, (STEPS if is_resumed else 2) + 1)]
    assert all(map(math.isfinite, result.losses.values()))
    assert [event["message"] for event in result.events if event["event"] == "warning"] == []
    assert_updates_belong(seen)
    for one in on:
        (FEATURES[one.name].shows if one.name in FEATURES else SHOWS[one.name])(seen)
    if is_resumed:
        assert_resumes(matrix, family, features, name, asked, result)
        return
    silent = [one for one in on if one.changes is not None]
    if silent:
        own = {setting for one in silent for setting in one.settings(family)}
        plain = matrix.losses(family, features, (*SHORT, *(one for one in asked if one not in own and not one.startswith(BESIDE))))
        change = max(one.changes or 0.0 for one in silent)
        in_bf16 = seen.run.config.run.weights == "bf16"
        assert result.losses == pytest.approx(plain, rel=max(change, ROUNDING) if change and in_bf16 else change, abs=0)


def assert_resumes(matrix: Matrix, family: str, features: frozenset[str], name: str, asked: Sequence[str], straight: Result) -> None:
    """A run that is killed after its first step goes on as if it had not been."""
    matrix.train_and_kill(family, features, f"{name}-killed", 1, asked)
    resumed, _ = matrix.train_pretending(family, features, f"{name}-killed", asked)
    assert [event["resumed_from"] for event in resumed.events if event["event"] == "start"][-1].endswith("step-000001")
    assert resumed.losses == straight.losses
    expected, found = saved(straight), saved(resumed)
    assert expected.keys() == found.keys()
    assert [place for place, value in expected.items() if not torch.equal(value, found[place])] == []


def saved(result: Result) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint."""
    folder = result.path / f"checkpoints/step-{STEPS:06d}"
    files = {file.relative_to(folder): load_file(file) for file in folder.rglob("*.safetensors")}
    state = torch.load(folder / "training/state.pt", weights_only=True)
    return {f"{file}:{key}": one for file, tensors in files.items() for key, one in tensors.items()} | dict(tensors_in(state, "state"))


def tensors_in(value: object, place: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors within dicts and lists, by their places."""
    if isinstance(value, torch.Tensor):
        yield place, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield from tensors_in(inner, f"{place}.{key}")

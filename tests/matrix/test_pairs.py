"""Every family with every pair of features, and with all at once: three steps each, on its twin.

A dozen cases run with the other tests; the others are marked `matrix`, and run by `make matrix`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pytest

from tests.runs.test_resume import assert_same_run

from .conftest import Matrix
from .features import FEATURES, STEPS, assert_updates_belong
from .stage import FAMILIES

QUICK = {
    "sana": ("masked+tread", "crepa+lora", "checkpointing+scheduled_sampling"),
    "sana_video": ("crepa+tread", "masked+scheduled_sampling", "accumulation+lora"),
    "wan_s2v": ("checkpointing+tread", "crepa+masked", "lora+scheduled_sampling"),
}
"""Pairs of the quick part, in which every feature is met; all at once, which is in it too, resumes."""


def cases() -> Sequence[object]:
    """A family and the features that are on."""
    pairs = [frozenset(pair) for pair in combinations(FEATURES, 2)]
    made = []
    for family in FAMILIES:
        for features in (*pairs, frozenset(FEATURES)):
            name = "all" if len(features) > 2 else "+".join(sorted(features))
            is_quick = name == "all" or name in QUICK.get(family, ())
            made.append(pytest.param(family, features, id=f"{family}-{name}", marks=() if is_quick else pytest.mark.matrix))
    return made


@pytest.mark.parametrize(("family", "features"), cases())
def test_features_work_together(matrix: Matrix, family: str, features: frozenset[str]) -> None:
    name = "-".join(sorted(features))
    result, seen = matrix.train(family, features, name)
    assert sorted(result.losses) == [1, 2, 3]
    assert all(map(math.isfinite, result.losses.values()))
    assert_updates_belong(seen)
    for feature in sorted(features):
        FEATURES[feature].shows(seen)
    if "resume" in features:
        matrix.train_and_kill(family, features, f"{name}-killed", step=1)
        resumed, _ = matrix.train(family, features, f"{name}-killed")
        assert [event["resumed_from"] for event in resumed.events if event["event"] == "start"][-1].endswith("step-000001")
        assert_same_run(result, resumed, STEPS)

"""What is proposed where a run does not fit: the cheapest that does, what is refused alone, and what comes nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest

from tunesmith import LAST_RESORT, Lever
from tunesmith.levers import written
from tunesmith.rehearsal import Phase
from tunesmith.savings import GIB, LEAST_RESERVED, Search, limit_of

SMALL = Lever({"a.small": True}, "a little time", 0.1)
HALF = Lever({"a.portions": 2}, "half the time", 0.2)
ALL = Lever({"a.portions": "all"}, "more time", 0.4)
DEAR = Lever({"b.bits": 8}, "digits", 3.0)
NEEDY = Lever({"c.packed": True}, "digits of what is frozen", 1.5)
ADAPTER = Lever({"c.adapter": 16}, "something else is learnt", LAST_RESORT)
LEVERS = (ADAPTER, DEAR, NEEDY, ALL, HALF, SMALL)


class Toy:
    """A run of 20 GiB in training and 6 in caching, and what changes of its config do to that."""

    def __init__(self) -> None:
        self.looked: list[dict[str, Any]] = []

    def phases(self, weights: float = 8.0, activations: float = 12.0, caching: float = 6.0) -> list[Phase]:
        return [
            Phase("caching", 0, 0, 0, round(caching * GIB)),
            Phase("training", round(weights * GIB), 0, 0, round(activations * GIB)),
        ]

    def __call__(self, changes: Mapping[str, Any]) -> Sequence[Phase] | None:
        self.looked.append(dict(changes))
        if "c.packed" in changes and "c.adapter" not in changes:
            return None  # refused
        weights = 8.0 / (2 if "b.bits" in changes else 1) / (2 if "c.adapter" in changes else 1) / (4 if "c.packed" in changes else 1)
        activations = {None: 12.0, 2: 7.0, "all": 2.0}[changes.get("a.portions")]
        return self.phases(weights, activations, 3.0 if "a.small" in changes else 6.0)


def vram_for(limit: float) -> int:
    """A device on which tensors may take so many GiB."""
    return round(max(limit + LEAST_RESERVED / GIB, limit / 0.9) * GIB) + 1


def proposed(limit: float, levers: Sequence[Lever] = LEVERS) -> tuple[bool, list[str] | None]:
    toy = Toy()
    answer = Search(levers, toy, toy.phases()).on(vram_for(limit))
    return answer.fits, None if answer.proposed is None else answer.proposed.settings


@pytest.mark.parametrize(("vram", "limit"), [(4, 3.0), (10, 9.0), (24, 21.6)])
def test_a_tenth_of_a_device_and_at_least_one_gib_is_left_free(vram, limit):
    assert limit_of(vram * GIB) == pytest.approx(limit * GIB)


def test_a_run_that_fits_needs_nothing_and_is_told_what_each_setting_saves():
    toy = Toy()
    answer = Search(LEVERS, toy, toy.phases()).on(vram_for(20.5))
    assert (answer.fits, answer.proposed) == (True, None)
    told = [" ".join(one.settings) for one in answer.options]
    assert told == ["a.small=true", "a.portions=2", "a.portions=all", "b.bits=8", "c.adapter=16"]
    assert [round(one.peak / GIB) for one in answer.options] == [20, 15, 10, 16, 16]


@pytest.mark.parametrize(
    ("limit", "settings"),
    [
        (16, ["a.portions=2"]),  # the cheapest of three with which it fits
        (11, ["a.portions=all"]),
        (7, ["a.portions=all", "b.bits=8"]),
        (5.5, ["a.small=true", "a.portions=all", "c.packed=true", "c.adapter=16"]),  # what is refused without another, and caching
        (5, ["a.small=true", "a.portions=all", "c.packed=true", "c.adapter=16"]),
    ],
)
def test_the_cheapest_changes_that_fit_are_proposed_and_no_needless_ones(limit, settings):
    assert proposed(limit) == (True, settings)


@pytest.mark.parametrize("limit", [16, 11, 7, 5.5])
def test_no_part_of_what_is_proposed_would_be_enough(limit):
    toy = Toy()
    _, settings = proposed(limit)
    assert settings is not None
    chosen = [lever for lever in LEVERS if all(f"{key}={written(value)}" in settings for key, value in lever.changes.items())]
    for fewer in combinations(chosen, len(chosen) - 1):
        phases = toy({key: value for lever in fewer for key, value in lever.changes.items()})
        assert phases is None or max(phase.peak for phase in phases) > limit * GIB


def test_where_nothing_fits_what_comes_nearest_is_told():
    assert proposed(2.5) == (False, ["a.small=true", "a.portions=all", "c.packed=true", "b.bits=8", "c.adapter=16"])
    assert proposed(2.5, ()) == (False, None)


def test_the_same_is_looked_for_whatever_the_order_of_levers():
    one, other = Toy(), Toy()
    Search(LEVERS, one, one.phases()).on(vram_for(7))
    Search(LEVERS[::-1], other, other.phases()).on(vram_for(7))
    assert one.looked == other.looked
    assert len(one.looked) < 30


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (2, "2"), ("bf16", "bf16"), ("true", '"true"'), ("a b", '"a b"')])
def test_values_are_written_as_an_override_reads_them(value, text):
    from tunesmith.config.overrides import apply

    data: dict[str, Any] = {}
    apply(f"run.x={text}", data)
    assert written(value) == text
    assert data == {"run": {"x": value}}

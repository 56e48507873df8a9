"""Whole runs with routes."""

from __future__ import annotations

import pytest

from tests.runs.conftest import LORA, pictures, train, twin
from tests.runs.test_resume import EVERY_TWO, assert_same_run, stopped_after

from .conftest import routes

__all__ = ["pictures", "train", "twin"]

TABLES = LORA + routes((0.5, 1, -2)) + EVERY_TWO


@pytest.mark.parametrize("settings", [(), ("run.gradient_accumulation=2", "run.gradient_checkpointing=true")], ids=["plain", "in parts"])
def test_a_run_that_was_stopped_sends_the_same_tokens_as_one_that_was_not(train, monkeypatch, settings) -> None:
    straight = train("straight", TABLES, *settings)
    with stopped_after(4, monkeypatch):
        train("resumed", TABLES, *settings)
    assert_same_run(straight, train("resumed", TABLES, *settings), 6)


def test_routes_change_what_is_learnt_and_those_of_ratio_0_do_not(train) -> None:
    plain = train("plain", LORA)
    assert train("off", LORA + routes((0.0, 1, -2))).losses == plain.losses
    routed = train("on", LORA + routes((0.5, 1, -2)))
    assert all(routed.losses[step] != plain.losses[step] for step in plain.losses)
    assert routed.pictures(0) == plain.pictures(0)  # before the first step, with all tokens

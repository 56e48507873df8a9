"""The order of plugins depends on stages, relations and names alone."""

import random

import pytest

from tunesmith import InputError, Plugin, Settings, Stage
from tunesmith.ordering import ordered


class Nothing(Settings):
    """No settings."""


class Some(Plugin[Nothing]):
    """Some plugin."""


def kind(stage, outside=(), inside=()):
    return type("Some", (Some,), {"stage": stage, "outside": outside, "inside": inside})


def test_stages_come_first_then_names():
    plugins = {"b": kind(Stage.LOAD), "z": kind(Stage.ADAPT), "a": kind(Stage.OBJECTIVE), "c": kind(Stage.LOAD)}
    assert ordered(plugins) == ["b", "c", "z", "a"]


def test_relations_hold_within_and_across_stages():
    plugins = {
        "a": kind(Stage.OBJECTIVE, outside=("b",)),
        "b": kind(Stage.OBJECTIVE),
        "c": kind(Stage.LOAD, outside=("a",)),
        "d": kind(Stage.REPORT, inside=("b",)),
    }
    order = ordered(plugins)
    assert order.index("b") < order.index("a") < order.index("c")
    assert order.index("d") < order.index("b")


def test_relations_to_absent_plugins_do_not_count():
    assert ordered({"a": kind(Stage.LOAD, outside=("nobody",), inside=("none",))}) == ["a"]


def test_neither_discovery_nor_table_order_matters():
    plugins = [
        (f"p{number}", kind(Stage(number % 10), outside=(f"p{(number * 7 + 1) % 15}",) if number % 4 == 1 else ())) for number in range(15)
    ]
    expected = ordered(plugins)
    shuffler = random.Random(0)
    for _ in range(50):
        shuffler.shuffle(plugins)
        assert ordered(plugins) == expected


def test_a_cycle_is_printed():
    plugins = {"a": kind(Stage.LOAD, outside=("b",)), "b": kind(Stage.LOAD, outside=("a",)), "c": kind(Stage.LOAD)}
    with pytest.raises(InputError, match="a -> b -> a"):
        ordered(plugins)

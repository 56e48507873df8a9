"""The active plugins fit together, or the config says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config import ConfigErrors, load_config
from tunesmith.config.tables import RunTable

GOOD = '[run]\nsteps = 1\n[model]\nfamily = "toyfamily"\n[[datasets]]\npath = "a"\n'
FIRST = GOOD.count("\n") + 1


@pytest.fixture
def told(toy, tmp_path: Path):
    def told(*tables: str) -> list[str]:
        path = tmp_path / "c.toml"
        path.write_text(GOOD + "".join(f"[plugins.{name}]\n" for name in tables))
        with pytest.raises(ConfigErrors) as caught:
            load_config(path)
        return [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]

    return told


def test_order_is_by_stage_relation_and_name_and_not_by_table(toy, tmp_path):
    toy.plain("zeta", "ADAPT")
    toy.plain("alpha", "REPORT")
    toy.plain("beta", "ADAPT", "outside = ('alpha',)")
    path = tmp_path / "c.toml"
    path.write_text(GOOD + "[plugins.beta]\n[plugins.alpha]\n[plugins.zeta]\n")
    config = load_config(path)
    assert config.order == ("toyfamily", "zeta", "alpha", "beta")
    assert set(config.classes) == set(config.order)


def test_what_a_plugin_requires_and_cannot_be_with(toy, told):
    toy.plain("needs", body="requires = ('absent', 'toyfamily')")
    toy.plain("left", body="conflicts = {'right': 'both steer'}")
    toy.plain("right", body="conflicts = {'left': 'both steer', 'absent': 'never'}")
    assert told("needs", "right", "left") == [
        f"c.toml:{FIRST}: [plugins.needs] plugin 'needs' requires [plugins.absent]",
        f"c.toml:{FIRST + 1}: [plugins.right] plugin 'right' cannot be on together with 'left': both steer",
    ]


def test_a_plugin_that_is_switched_off_does_not_count(toy, told, tmp_path):
    toy.plain("needs", body="requires = ('other',)")
    toy.plain("other", body="conflicts = {'needs': 'no'}")
    assert told("needs", "other]\nenabled = false\n[run.x") == [
        f"c.toml:{FIRST}: [plugins.needs] plugin 'needs' requires [plugins.other], which is switched off",
        f"c.toml:{FIRST + 3}: [run] unknown setting 'x'; known are {RUN}",
    ]


RUN = ", ".join(sorted(RunTable.model_fields))


def test_relations_in_a_circle_print_it(toy, told):
    toy.plain("one", body="outside = ('two',)")
    toy.plain("two", body="outside = ('one',)")
    assert told("one", "two") == [f"c.toml:{FIRST + 1}: [plugins.two] plugins cannot be ordered: one -> two -> one"]


def test_two_providers_of_one_hook(toy, told):
    provider = "@hookimpl\n    def compute_loss(self, run, step): ..."
    toy.plain("first", body=provider)
    toy.plain("second", body=provider)
    assert told("second", "first") == [f"c.toml:{FIRST + 1}: [plugins.first] compute_loss is provided by 'first' and 'second'; keep one"]


def test_a_family_that_loads_nothing(toy, tmp_path):
    toy.plugin("idle", "class None_(Settings): ...\nclass Probe(FamilyPlugin[None_]):\n    'Idle.'\n")
    path = tmp_path / "c.toml"
    path.write_text(GOOD.replace("toyfamily", "idle"))
    with pytest.raises(ConfigErrors) as caught:
        load_config(path)
    assert [problem.message.partition(";")[0] for problem in caught.value.problems] == [
        "load_model is provided by no active plugin",
        "encode_batch is provided by no active plugin",
    ]


def test_a_plugin_that_breaks_the_contract_is_told_with_its_distribution(toy, told):
    toy.plain("typo", body="def compute_los(self, run, step): ...\n    compute_los = hookimpl(compute_los)")
    toy.plain("text", body="requires = ('toyfamily')")
    toy.plugin("module", "x = 3", target="x")
    assert told("typo", "text", "module") == [
        f"c.toml:{FIRST}: [plugins.typo] plugin 'typo' (acme-typo 1.0) breaks the contract: "
        "Probe.compute_los is marked as a hook, but there is none of that name; did you mean compute_loss?",
        f"c.toml:{FIRST + 1}: [plugins.text] plugin 'text' (acme-text 1.0) breaks the contract: "
        "Probe.requires is text; write a tuple of names, with a comma behind a single one",
        f"c.toml:{FIRST + 2}: [plugins.module] plugin 'module' (acme-module 1.0) is installed but cannot be used: "
        "3 is not a subclass of tunesmith.Plugin; the entry point must name the class itself",
    ]

"""A third party's broken plugin hurts no run that does not ask for it, and is named in the one that does."""

from __future__ import annotations

import re
import traceback
import warnings

import pytest

from core.tests.conftest import Installation
from tests.runs.conftest import Result
from tunesmith import InputError, RunFailed
from tunesmith.cli.listing import describe
from tunesmith.discovery import installed
from tunesmith.hookspecs import Hooks

QUICK = ("run.steps=2", "validation.at_start=false", "validation.at_end=false")
NAMED = "plugin 'broken' (acme-broken 1.0)"
ASKED = "[plugins.broken]\n"

PLUGIN = """
from pydantic import model_validator

class BrokenSettings(Settings):
    pass

class Probe(Plugin[BrokenSettings]):
    '''A plugin that fails.'''
    stage = Stage.{stage}
    {body}
"""


def source(body: str, stage: str = "EVALUATE") -> str:
    return PLUGIN.format(body=body.replace("\n", "\n    "), stage=stage)


RAISING_SETTINGS = """
    @model_validator(mode="before")
    @classmethod
    def always(cls, data):
        raise KeyError("oops")
"""

UNUSABLE = {
    "import error": ("import absent_module_", "ModuleNotFoundError: No module named 'absent_module_'"),
    "syntax error": ("def broken(:", "SyntaxError"),
    "sys.exit at import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "exception at import": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "no class": ("x = 1", "AttributeError"),
    "no plugin": ("Probe = print", "is not a subclass of tunesmith.Plugin"),
    "settings without descriptions": ("class Bare(Settings):\n    x: int = 1\n", "these settings have no description: x"),
    "no settings": ("class Probe(Plugin):\n    '''x'''\n    stage = Stage.LOAD\n", "does not name its settings"),
    "no stage": (source("").replace("stage = Stage.EVALUATE", ""), "has no stage"),
    "wrong signature": (source("@hookimpl\ndef on_step(self, run, nonsense): pass"), "asks for nonsense; on_step offers run, step"),
    "unknown hook": (source("@hookimpl\ndef on_stepp(self, run): pass"), "did you mean on_step"),
    "wrapper without yield": (source("@hookimpl(wrapper=True)\ndef compute_loss(self, run, step): return None"), "without a yield"),
    "forgotten mark": (source("def on_step(self, run, step): pass"), "write @hookimpl above it"),
    "relation of numbers": (source("requires = (3,)"), "Probe.requires is (3,); write a tuple of names"),
    "levers that are none": (source("levers = None"), "Probe.levers is None; write a tuple of tunesmith.Lever"),
    "relation that is none": (source("outside = None"), "Probe.outside is None; write a tuple of names"),
    "conflicts without reasons": (source("conflicts = ('lora',)"), "Probe.conflicts is ('lora',); write a dict"),
    "settings that raise": (source("").replace("    pass", RAISING_SETTINGS, 1), "cannot check its settings: KeyError: 'oops'"),
}
"""Plugins that are refused while the config is read, and what is said."""

RAISE = "raise ZeroDivisionError('deep inside')"
HOOKS = {
    "load_model": f"@hookimpl(wrapper=True)\ndef load_model(self, run, part):\n    model = yield\n    {RAISE}",
    "encode_batch": f"@hookimpl(wrapper=True)\ndef encode_batch(self, run, batch):\n    {RAISE}\n    return (yield)",
    "compute_loss": f"@hookimpl(wrapper=True)\ndef compute_loss(self, run, step):\n    loss = yield\n    {RAISE}",
    "on_step": f"@hookimpl\ndef on_step(self, run, step):\n    {RAISE}",
    "validate": f"@hookimpl\ndef validate(self, run, report):\n    {RAISE}",
    "save_checkpoint": f"@hookimpl\ndef save_checkpoint(self, run, path):\n    {RAISE}",
}
PARTS = {
    "__init__": f"def __init__(self, name, settings):\n    {RAISE}",
    "check": f"def check(self, config, family):\n    {RAISE}",
    "fields": f"def fields(self, run):\n    {RAISE}",
    "state_dict": f"def state_dict(self):\n    {RAISE}",
    "media_writers": f"def media_writers(self):\n    {RAISE}",
}


@pytest.fixture
def broken(installation: Installation):
    def install(text: str) -> None:
        installation.plugin("broken", text)

    return install


@pytest.mark.parametrize("fault", UNUSABLE)
def test_a_plugin_that_cannot_be_used_is_named_with_its_distribution_before_anything_is_written(train, broken, tmp_path, fault):
    text, reason = UNUSABLE[fault]
    broken(text)
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        train("asks", ASKED, *QUICK)
    assert caught.value.exit_code == 2
    assert NAMED in str(caught.value)
    assert re.search(r"asks\.toml:\d+: \[plugins\.broken\]", str(caught.value))
    assert not (tmp_path / "runs").exists()


def test_broken_plugins_hurt_no_run_that_does_not_ask_for_them(train, installation):
    alone = train("alone", "[plugins.lora]\n", *QUICK)
    for number, (text, _) in enumerate(UNUSABLE.values()):
        installation.plugin(f"broken{number}", text)
    for name, body in {**HOOKS, **PARTS}.items():
        installation.plugin(f"broken_{name.strip('_')}", source(body))
    (installation.distribution("not-text", entry_points="[tunesmith]\nodd = a:b\n") / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    (installation.distribution("not-text-either") / "entry_points.txt").write_bytes(b"[tunesmith]\n\xff\xfe = a:b\n")
    (installation.distribution("no-metadata", entry_points="[tunesmith]\nbare = a:b\n") / "METADATA").unlink()
    beside = train("beside", "[plugins.lora]\n[plugins.broken0]\nenabled = false\n", *QUICK)
    assert beside.losses == alone.losses
    assert installation.imported() == set()


def test_every_broken_plugin_is_told_by_the_check_of_all_and_hides_no_other(installation):
    for number, (text, _) in enumerate(UNUSABLE.values()):
        installation.plugin(f"broken{number}", text)
    found = {plugin["name"]: plugin["problems"] for plugin in describe(installed(), check=True)}
    silent = [fault for number, fault in enumerate(UNUSABLE) if not found[f"broken{number}"]]
    assert silent == ["settings that raise"]  # only a table brings that out
    assert found["sana"] == found["lora"] == []


@pytest.mark.parametrize("hook", HOOKS)
def test_an_exception_in_a_hook_names_hook_plugin_and_distribution(train, broken, hook):
    broken(source(HOOKS[hook]))
    with pytest.raises(ZeroDivisionError, match="deep inside") as caught:
        train("asks", ASKED, "run.steps=2")
    assert caught.value.__notes__ == [f"in {hook} of {NAMED}"]
    assert "acme_broken_module.py" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("part", PARTS)
def test_an_exception_outside_of_the_hooks_names_plugin_and_distribution_too(train, broken, part):
    broken(source(PARTS[part]))
    with pytest.raises(ZeroDivisionError, match="deep inside") as caught:
        train("asks", ASKED, "run.steps=2")
    assert caught.value.__notes__ == [f"in {part} of {NAMED}"]


def test_all_hooks_but_log_are_covered_here():
    assert HOOKS.keys() == {name for name, spec in vars(Hooks).items() if hasattr(spec, "tunesmith_spec")} - {"log"}


@pytest.mark.parametrize("hook", ["load_model", "encode_batch", "compute_loss"])
def test_a_forgotten_return_names_the_plugin(train, broken, hook):
    argument = {"load_model": "part", "encode_batch": "batch", "compute_loss": "step"}[hook]
    broken(source(f"@hookimpl(wrapper=True)\ndef {hook}(self, run, {argument}):\n    yield"))
    with pytest.raises(RuntimeError, match=r"drops the result: end with return") as caught:
        train("asks", ASKED, *QUICK)
    assert caught.value.__notes__ == [f"in {hook} of {NAMED}"]


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("{'a': [1, lambda: 0]}", "state_dict()['a'][1] is a function"),
        ("{'a': {'b': self}}", "state_dict()['a']['b'] is a Probe"),
        ("{'a': {1, 2}}", "state_dict()['a'] is a set"),
        ("[1]", "state_dict() is a list"),
    ],
)
def test_state_that_could_not_be_loaded_again_is_refused_when_it_is_saved(train, broken, state, found):
    broken(source(f"def state_dict(self): return {state}"))
    with pytest.raises(RunFailed, match=re.escape(f"{NAMED} cannot be saved: {found}")):
        train("asks", ASKED, *QUICK)


def test_state_that_does_not_load_names_the_plugin_and_leaves_the_checkpoint(train, broken):
    body = "def state_dict(self): return {'steps': 1, 'text': 'a', 'nested': {2: (None, 1.5, b'x')}}\n"
    broken(source(body + "def load_state_dict(self, state):\n    raise ZeroDivisionError(f\"deep inside {state['nested'][2][1]}\")"))
    saved: Result = train("asks", ASKED, *QUICK)
    before = sorted((path, path.stat().st_mtime_ns) for path in (saved.path / "checkpoints").rglob("*"))
    with pytest.raises(ZeroDivisionError, match=r"deep inside 1\.5") as caught:
        train("asks", ASKED, *QUICK, "run.steps=4")
    assert caught.value.__notes__ == [f"in load_state_dict of {NAMED}"]
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (saved.path / "checkpoints").rglob("*"))


@pytest.mark.parametrize("fault", ["raise ConnectionError('no server')", "import sys; sys.exit(1)"])
def test_a_tracker_that_fails_is_told_three_times_and_never_stops_a_run(train, broken, fault):
    alone = train("alone", "", "run.steps=4", *QUICK[1:])
    broken(source(f"@hookimpl\ndef log(self, run, event):\n    {fault}", "REPORT"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        beside = train("beside", ASKED, "run.steps=4", *QUICK[1:])
    told = [str(warning.message) for warning in caught if "could not log" in str(warning.message)]
    assert len(told) == 3
    assert all("plugin 'broken'" in line for line in told)
    assert told[-1].endswith("muted from now on")
    assert beside.losses == alone.losses
    assert beside.events[-1]["event"] == "end"

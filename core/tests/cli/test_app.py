"""The commands: what they print where, how they exit, and what they do not import."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from tunesmith.cli.app import main
from tunesmith.errors import InputError, RunFailed

GOOD = '[run]\nsteps = 1\n[model]\nfamily = "toyfamily"\n[[datasets]]\npath = "a"\n'


@pytest.fixture
def tune(monkeypatch, capsys):
    """Run `tune` in this process; exit code, stdout, stderr."""

    def tune(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tune", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        captured = capsys.readouterr()
        return (0 if code is None else int(code)), captured.out, captured.err

    return tune


@pytest.fixture
def config(toy, tmp_path: Path) -> str:
    path = tmp_path / "c.toml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def session(monkeypatch) -> types.SimpleNamespace:
    """The session and the plan, replaced by what notes how they were called."""
    made = types.SimpleNamespace(calls=[], error=None)

    def run(config: Any, resume: str, progress: Any) -> None:
        made.calls.append((config.run.steps, resume, progress.mode))
        if made.error:
            raise made.error
        progress.message("on the way")
        progress.result("the result")

    plan = types.SimpleNamespace(problems=[], as_json=lambda: {"steps": 3, "path": Path("x")}, render=lambda: Text("a plan [b]"))
    who = {"load_model": [("outer", "wrapper"), ("inner", "wrapper"), ("toyfamily", "provider")], "log": []}
    fake_session = types.SimpleNamespace(run=run, explain=lambda config: who)
    monkeypatch.setitem(sys.modules, "tunesmith.session", fake_session)
    monkeypatch.setitem(sys.modules, "tunesmith.plan", types.SimpleNamespace(make_plan=lambda *given, forecasts: plan))
    return made


def test_run_reads_the_config_and_hands_it_on(tune, config, session):
    assert tune("run", config, "--set", "run.steps=5", "--set", "run.seed=1")[0] == 0
    assert tune("run", config, "--resume", "never", "--quiet")[1:] == ("the result\n", "")
    assert tune("run", config, "--json")[1:] == ("", "")
    assert session.calls == [(5, "latest", "auto"), (1, "never", "quiet"), (1, "latest", "json")]


def test_a_mistake_of_the_user_is_exit_code_2_and_a_message_alone(tune, config, session):
    code, out, err = tune("run", config, "--set", "run.stepz=5")
    assert (code, out) == (2, "")
    assert err == "--set run.stepz=5: [run] unknown setting 'stepz'; did you mean 'steps'?\n"
    assert session.calls == []


def test_ten_mistakes_are_ten_lines_on_stderr(tune, config, session):
    Path(config).write_text("[run]\nsteps = 1\n" + "".join(f"mistake_{'long_' * 40}{number} = 1\n" for number in range(7)))
    code, _, err = tune("run", config, "--set", "noise.shift=[]")
    assert code == 2
    assert len(err.splitlines()) == 10  # 7 settings, no model, no datasets, and the override


def test_quiet_and_json_exclude_each_other(tune, config, session):
    assert tune("run", config, "--quiet", "--json")[0] == 2


@pytest.mark.parametrize(("error", "code"), [(RunFailed("the loss is not finite [/x]"), 1), (InputError("no pictures [b]"), 2)])
def test_a_failed_run_exits_by_its_kind_with_its_message_alone(tune, config, session, error, code):
    session.error = error
    assert tune("run", config) == (code, "", f"{error}\n")


def test_a_bug_shows_its_traceback(config, session, monkeypatch):
    session.error = ZeroDivisionError("a bug")
    monkeypatch.setattr(sys, "argv", ["tune", "run", config])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize("arguments", [["frobnicate"], ["run"], ["run", "x.toml", "--frobnicate"], ["plan", "none.toml"]])
def test_wrong_usage_is_exit_code_2(tune, arguments):
    code, out, err = tune(*arguments)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err


def test_plan_prints_text_or_json(tune, config, session):
    assert tune("plan", config) == (0, "a plan [b]\n", "")
    code, out, _ = tune("plan", config, "--json")
    assert (code, json.loads(out)) == (0, {"steps": 3, "path": "x"})


def test_plan_forecasts_unless_that_is_not_asked_for(tune, config, session, monkeypatch):
    seen = []
    plan = types.SimpleNamespace(problems=[], as_json=dict, render=lambda: Text(""))

    def make(config, sheet, vram, tell, forecasts):
        seen.append((vram, forecasts))
        return plan

    monkeypatch.setitem(sys.modules, "tunesmith.plan", types.SimpleNamespace(make_plan=make))
    for arguments in ((), ("--no-forecast",), ("--vram", "12")):
        assert tune("plan", config, *arguments)[0] == 0
    assert seen == [(None, True), (None, False), (12 * 2**30, True)]
    code, _, err = tune("plan", config, "--vram", "12", "--no-forecast")
    assert code != 0
    assert "--vram and --no-forecast exclude each other" in err


def test_explain_prints_the_nesting_of_each_hook(tune, config, session):
    assert tune("explain", config)[1].splitlines() == [
        "load_model",
        "  outer wraps",
        "    inner wraps",
        "      toyfamily provides",
        "log",
        "  nobody",
    ]


def test_plugins_are_listed_aligned_and_unimported(tune, toy):
    code, out, _ = tune("plugins")
    assert code == 0
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("toy")] == sorted(line for line in lines if line.startswith("toy"))
    [family] = [line for line in lines if line.startswith("toyfamily")]
    assert family.split() == ["toyfamily", "acme-toyfamily", "1.0", "About", "acme-toyfamily."]
    assert toy.imported() == set()
    listed = {plugin["name"]: plugin for plugin in json.loads(tune("plugins", "--json")[1])}
    assert listed["toyloss"]["entry_point"] == "acme_toyloss_module:Probe"
    assert toy.imported() == set()


def test_checking_says_ok_or_why_not_and_exits_1_if_one_is_broken(tune, toy, alone):
    toy.plugin("broken", "import nothing_of_that_name")
    toy.plain("careless", body="def log(self, run, event): ...")
    code, out, _ = tune("plugins", "--check")
    assert code == 1
    state = {line.split()[0]: line.split()[3] for line in out.splitlines() if not line.startswith(" ")}
    assert state["toyfamily"] == state["toyloss"] == "OK"
    assert state["broken"] == state["careless"] == "BROKEN"
    assert "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'" in out
    assert "Probe.log is named like a hook but is not marked: write @hookimpl above it" in out
    found = {plugin["name"]: plugin["problems"] for plugin in json.loads(tune("plugins", "--check", "--json")[1])}
    assert found["toyloss"] == []
    assert len(found["careless"]) == 1


def test_the_schema_leaves_broken_plugins_out_and_says_so(tune, toy, alone, tmp_path):
    toy.plugin("broken", "import nothing_of_that_name")
    code, out, err = tune("schema")
    assert code == 0
    assert "broken" in err
    assert "toyloss" in json.loads(out)["properties"]["plugins"]["properties"]
    file = tmp_path / "schema.json"
    assert tune("schema", "--output", str(file))[:2] == (0, "")
    assert json.loads(file.read_text()) == json.loads(out)
    assert tune("schema", "--output", str(tmp_path))[0] == 2


PROBE = """
import sys
sys.path.insert(0, {site!r})
sys.argv = ["tune", *{arguments!r}]
from tunesmith.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "numpy", "diffusers", "transformers", "accelerate", "PIL"}} & sys.modules.keys()
assert not heavy, heavy
plugins = [name for name in sys.modules if name.startswith("acme_")]
assert not plugins, plugins
"""


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["plugins", "--json"], ["run", "--help"]])
def test_help_and_the_list_of_plugins_import_neither_torch_nor_a_plugin(toy, arguments):
    script = PROBE.format(site=str(toy.folder), arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "toyfamily" in done.stdout or "Usage" in done.stdout


def test_the_module_is_the_command(toy):
    toy.distribution("tunesmith", "9.9")
    start = f"import sys, runpy; sys.path.insert(0, {str(toy.folder)!r}); sys.argv = ['x', '--version']"
    script = f"{start}; runpy.run_module('tunesmith', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "tunesmith 9.9\n"), done.stderr

"""Commands of plugins: named in the help without an import, imported when called, and never in the core's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tunesmith.cli import commands
from tunesmith.cli.app import app
from tunesmith.discovery import InstalledPlugin, installed
from tunesmith.errors import InputError

MODULE = """
import typer

print("imported")
app = typer.Typer(help="Sharpen things.", add_completion=False)


@app.callback()
def sharpen():
    pass


@app.command()
def pencil(length: int = 3):
    print(f"a pencil of {length}")
"""


@pytest.fixture(autouse=True)
def _plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions that bring commands, on the path."""
    (tmp_path / "sharpener.py").write_text(MODULE)
    (tmp_path / "broken_sharpener.py").write_text("raise RuntimeError('no edge')")
    entries = {
        "one": "sharpen = sharpener:app\ntwice = sharpener:app\nrun = sharpener:app",
        "two": "twice = sharpener:app\nblunt = broken_sharpener:app\nnothing = sharpener:MISSING\nwrong = sharpener:pencil",
    }
    for name, points in entries.items():
        summary = "Summary: Things with edges.\n" if name == "two" else ""
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{summary}")
        (folder / "entry_points.txt").write_text(f"[{commands.COMMANDS}]\n{points}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sharpener", raising=False)


def tune(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_help_names_commands_of_plugins_without_importing_them() -> None:
    result = tune("--help")
    assert result.exit_code == 0
    assert "sharpen" in result.output
    assert "one 1.0" in result.output
    assert "Things with edges." in result.output
    assert "sharpener" not in sys.modules
    assert "imported\n" not in result.output


def test_a_command_of_a_plugin_is_imported_when_called() -> None:
    result = tune("sharpen", "pencil", "--length", "5")
    assert (result.exit_code, result.output) == (0, "imported\na pencil of 5\n")


def test_a_command_of_a_plugin_has_its_own_help() -> None:
    result = tune("sharpen", "--help")
    assert result.exit_code == 0
    assert "pencil" in result.output


def test_the_cores_names_cannot_be_taken() -> None:
    assert "left out: a command 'run' of one 1.0; the name is the core's" in " ".join(tune("--help").output.split())
    assert "Train what CONFIG describes" in tune("run", "--help").output


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("twice", "command 'twice' is provided by one 1.0 and two 1.0; uninstall all but one"),
        ("blunt", "command 'blunt' (two 1.0) is installed but cannot be imported: RuntimeError: no edge"),
        ("nothing", "command 'nothing' (two 1.0) is installed but cannot be imported: AttributeError"),
        ("wrong", "command 'wrong' (two 1.0) is installed but cannot be used: its entry point names function and no Typer app"),
    ],
)
def test_a_command_that_cannot_be_had_is_told(name: str, told: str) -> None:
    result = tune(name)
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(told)


def test_an_unknown_command_is_no_plugins() -> None:
    assert tune("whet").exit_code == 2


def test_plugins_and_commands_are_apart() -> None:
    assert all(isinstance(claim, InstalledPlugin) for claim in installed(commands.COMMANDS)["sharpen"])
    assert "sharpen" not in installed()


def test_help_imports_no_torch() -> None:
    script = "import sys\nfrom typer.testing import CliRunner\nfrom tunesmith.cli.app import app\nCliRunner().invoke(app, ['--help'])\n"
    done = subprocess.run([sys.executable, "-c", f"{script}print('torch' in sys.modules)"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Each package builds to a wheel, installs beside core alone, and leaves nothing behind when it is removed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from functools import cached_property
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.house import Package, core, feature_packages, packages, parsed

pytestmark = pytest.mark.slow
every_feature = pytest.mark.parametrize("package", feature_packages(), ids=lambda package: package.where)
every_package = pytest.mark.parametrize("package", packages(), ids=lambda package: package.where)


def run(*command: str | Path, folder: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each package, by folder."""
    made = {}
    for package in packages():
        out = tmp_path_factory.mktemp(package.module)
        run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out, folder=package.folder)
        (made[package.where],) = out.glob("*.whl")
    return made


def imports_of_third_parties() -> Iterator[str]:
    """The imports at the top of the features' files that are not ours."""
    for path in (path for package in feature_packages() for path in package.sources):
        for node in parsed(path).body:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level and node.module.split("_")[0] not in ("", "tunesmith"):
                yield ast.unparse(node)


END = "end of what was written\n"
FORKS = f"""
import gc
import os
import sys

gc.freeze()
for command in sys.stdin:
    child = os.fork()
    if not child:
        from tunesmith.cli.app import main

        sys.argv = ["tune", *command.split()]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)  # without taking down what was imported, which takes as long
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print({END!r}, end="", flush=True)
"""


class Environment:
    """A fresh environment that sees this one's third parties and none of this one's packages of ours."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        scripts = "Scripts" if sys.platform == "win32" else "bin"
        self.folder = folder
        self.python = folder / scripts / "python"
        self.tune_command = folder / scripts / "tune"
        self.site = Path(run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        third_parties = self.site / "third_parties"
        third_parties.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if "tunesmith" not in entry.name and entry.suffix != ".pth":
                (third_parties / entry.name).symlink_to(entry)
        (self.site / "third_parties.pth").write_text(f"{third_parties}\n")

    def pip(self, *arguments: str | Path) -> str:
        return run(self.python, "-m", "pip", "--disable-pip-version-check", *arguments)

    def install(self, *wheels: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", *wheels)

    def plugins(self) -> list[str]:
        """What `tune plugins` lists."""
        return [entry["name"] for entry in json.loads(run(self.tune_command, "plugins", "--json"))]

    @cached_property
    def forks(self) -> subprocess.Popen[str]:
        """A process of the environment that does each command of `tune` in a fork; what features import of others takes long."""
        preloaded = "\n".join(sorted(imports_of_third_parties()))
        return subprocess.Popen([self.python, "-c", preloaded + FORKS], stdin=PIPE, stdout=PIPE, text=True)

    def tune(self, command: str) -> str:
        """What a command of `tune` writes."""
        assert self.forks.stdin is not None
        assert self.forks.stdout is not None
        print(command, file=self.forks.stdin, flush=True)
        *lines, code = iter(self.forks.stdout.readline, END)
        assert code == "0\n", command
        return "".join(lines)

    def close(self) -> None:
        """End its process."""
        self.forks.communicate()

    def tables(self) -> set[str]:
        """The tables that a config may have: the core's, those of plugins, and the families of `[model]`."""
        properties = json.loads(self.tune("schema"))["properties"]
        families = {kind["properties"]["family"]["const"] for kind in properties["model"].get("oneOf", [])}
        return {*properties, *properties["plugins"].get("properties", {}), *families}

    def files(self) -> set[str]:
        """Every file but compiled ones and the third parties'."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return {path.as_posix() for path in found if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def core_alone(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Iterator[Environment]:
    """An environment with core alone."""
    made = Environment(tmp_path_factory.mktemp("core_alone") / "env")
    made.install(wheels["core"])
    yield made
    made.close()


@pytest.fixture
def environment(core_alone: Environment) -> Iterator[Environment]:
    """The environment with core alone, as which it is left."""
    yield core_alone
    left = [folder.name.split("-")[0] for folder in core_alone.site.glob("tunesmith_*.dist-info")]
    if left:
        core_alone.pip("uninstall", "--yes", *left)


@pytest.fixture(scope="module")
def tables_of_core(core_alone: Environment) -> set[str]:
    """The tables that a config may have without any feature."""
    return core_alone.tables()


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


@every_package
def test_wheel_holds_the_package_its_type_marker_and_nothing_else(package: Package, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[package.where]) as archive:
        names = set(archive.namelist())
    sources = {path.relative_to(package.folder / "src").as_posix() for path in package.sources}
    assert sources | {f"{package.module}/py.typed"} <= names
    assert {name.split("/")[0] for name in names} == {package.module, f"{package.module}-{package.project['version']}.dist-info"}


@every_package
def test_wheel_says_who_made_it_what_it_needs_and_under_which_licence(package: Package, wheels: dict[str, Path]) -> None:
    found = metadata(wheels[package.where])
    assert found["Name"] == package.distribution
    assert found["Version"] == package.project["version"]
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.11"
    required = [line for line in found.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(required) == len(package.dependencies)
    assert "# " in str(found.get_payload())


def test_core_alone_brings_no_plugin(environment: Environment) -> None:
    assert environment.plugins() == []


@every_feature
def test_installing_a_feature_adds_its_plugins_and_removing_it_leaves_nothing(
    package: Package, environment: Environment, tables_of_core: set[str], wheels: dict[str, Path]
) -> None:
    files = environment.files()
    environment.install(wheels[package.where])
    assert environment.plugins() == sorted(package.entry_points)
    assert environment.tables() - tables_of_core == set(package.entry_points)
    environment.pip("uninstall", "--yes", package.distribution)
    assert environment.plugins() == []
    assert environment.files() == files  # so the tables are those of core, too


def test_removing_one_feature_leaves_the_others(environment: Environment, wheels: dict[str, Path]) -> None:
    everything = feature_packages()
    environment.install(*(wheels[package.where] for package in everything))
    gone, *others = everything
    environment.pip("uninstall", "--yes", gone.distribution)
    assert environment.plugins() == sorted(name for package in others for name in package.entry_points)
    assert run(environment.tune_command, "--version").split() == ["tunesmith", core().project["version"]]

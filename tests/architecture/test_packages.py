"""What every package has, and what keeps the packages together."""

from __future__ import annotations

import importlib
import re
import tomllib

import pytest
from packaging.specifiers import SpecifierSet

from tests.house import FEATURE_HOMES, ROOT, Package, core, feature_packages, packages
from tunesmith.contract import complaints

every_package = pytest.mark.parametrize("package", packages(), ids=lambda package: package.where)
every_feature = pytest.mark.parametrize("package", feature_packages(), ids=lambda package: package.where)


def minor_range(version: str) -> str:
    """The versions that a package works with: from this one to before the next minor one."""
    major, minor, _ = version.split(".")
    return f">={version},<{major}.{int(minor) + 1}"


@pytest.mark.parametrize("folder", ["core", *FEATURE_HOMES, "tests", "examples"])
def test_the_top_level_stands(folder: str) -> None:
    assert (ROOT / folder).is_dir()


@every_package
def test_package_has_its_files(package: Package) -> None:
    missing = [name for name in ("README.md", "tests", f"src/{package.module}/py.typed") if not (package.folder / name).exists()]
    assert not missing
    assert list((package.folder / "tests").rglob("test_*.py"))


@every_package
def test_package_is_built_by_hatchling_under_apache_for_python_311(package: Package) -> None:
    assert package.pyproject["build-system"]["build-backend"] == "hatchling.build"
    assert package.project["license"] == "Apache-2.0"
    assert package.project["requires-python"] == ">=3.11"
    assert package.project["readme"] == "README.md"
    assert package.pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"src/{package.module}"]


@every_package
def test_package_has_one_import_name(package: Package) -> None:
    assert [path.name for path in (package.folder / "src").iterdir()] == [package.module]


@every_feature
def test_feature_is_named_after_its_entry_point(package: Package) -> None:
    assert package.folder.name in package.entry_points
    assert package.distribution == f"tunesmith-{package.folder.name.replace('_', '-')}"


@every_feature
def test_entry_points_name_sound_plugin_classes(package: Package) -> None:
    for point in package.entry_points.values():
        module, name = point.split(":")
        assert module.split(".")[0] == package.module
        assert complaints(getattr(importlib.import_module(module), name)) == []


@every_package
def test_versions_are_in_lockstep(package: Package) -> None:
    assert package.project["version"] == core().project["version"]


@every_feature
def test_feature_works_with_the_core_of_its_minor_version(package: Package) -> None:
    assert package.dependencies["tunesmith"] == minor_range(package.project["version"])


def test_extras_are_the_plugins_of_the_repository_by_name() -> None:
    extras = dict(core().project["optional-dependencies"])
    everything = extras.pop("all")
    expected = {
        plugin: [package.distribution + minor_range(package.project["version"])]
        for package in feature_packages()
        for plugin in package.project["entry-points"]["tunesmith"]
    }
    assert extras == expected
    folders = [package.folder.name for package in feature_packages()]
    assert re.fullmatch(r"tunesmith\[(.*)\]", everything[0])[1].split(",") == folders  # type: ignore[index]


def test_requirements_install_every_package_editable() -> None:
    lines = (ROOT / "requirements/run.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("-e ")] == [f"-e ./{package.where}" for package in packages()]


def test_development_requirements_build_on_those_of_a_run() -> None:
    assert "-r run.txt" in (ROOT / "requirements/dev.txt").read_text().splitlines()


def test_requirements_pin_every_direct_dependency_within_what_is_declared() -> None:
    pins = dict(re.findall(r"(?m)^([A-Za-z0-9_-]+)==(\S+)$", (ROOT / "requirements/run.txt").read_text()))
    declared = {name for package in packages() for name in package.dependencies} - {package.distribution for package in packages()}
    assert {name.replace("_", "-").lower() for name in pins} == declared
    for package in packages():
        for name, allowed in package.dependencies.items():
            if name in pins:
                assert SpecifierSet(allowed).contains(pins[name]), f"{package.where}: {name}=={pins[name]}"


def test_mypy_sees_the_sources_of_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert {f"{package.where}/src" for package in packages()} <= set(settings["mypy_path"])
    assert {package.where.split("/")[0] for package in packages()} <= set(settings["files"])

"""The repository as data: its packages, their sources and what they import."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FEATURE_HOMES = ("models", "losses", "offload", "plugins")
TOP = ("core", *FEATURE_HOMES, "tests", "examples", "docs", "requirements", ".ci")
MADE = {"__pycache__", "dist"}


@dataclass(frozen=True)
class Package:
    """One package of the repository, at `folder`."""

    folder: Path

    @property
    def where(self) -> str:
        """The folder, relative to the repository, as messages name it."""
        return self.folder.relative_to(ROOT).as_posix()

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "pyproject.toml").read_text())

    @property
    def project(self) -> dict[str, Any]:
        table: dict[str, Any] = self.pyproject["project"]
        return table

    @property
    def distribution(self) -> str:
        return str(self.project["name"])

    @property
    def module(self) -> str:
        """The import name."""
        return self.distribution.replace("-", "_")

    @property
    def dependencies(self) -> dict[str, str]:
        """Direct dependencies: distribution name to version specifier."""
        found = (re.match(r"([A-Za-z0-9._-]+)\s*(.*)", line) for line in self.project.get("dependencies", []))
        return {match[1].replace("_", "-").lower(): match[2] for match in found if match}

    @property
    def optional(self) -> set[str]:
        """Distributions that the extras bring."""
        lines = (line for extra in self.project.get("optional-dependencies", {}).values() for line in extra)
        return {re.split(r"[^A-Za-z0-9._-]", line)[0].replace("_", "-").lower() for line in lines}

    @property
    def entry_points(self) -> dict[str, str]:
        """The plugins that the package brings: name to `module:Class`."""
        points: dict[str, str] = self.project.get("entry-points", {}).get("tunesmith", {})
        return points

    @property
    def sources(self) -> list[Path]:
        return sorted((self.folder / "src").rglob("*.py"))


def core() -> Package:
    """The core's package."""
    return Package(ROOT / "core")


def feature_packages() -> list[Package]:
    """Every folder that stands where a feature's package belongs."""
    return [
        Package(folder)
        for home in FEATURE_HOMES
        for folder in sorted((ROOT / home).glob("*"))
        if folder.is_dir() and folder.name[0] not in "._"
    ]


def packages() -> list[Package]:
    """Core and every feature."""
    return [core(), *feature_packages()]


def files(*suffixes: str) -> Iterator[Path]:
    """Files of the repository that people write, of these suffixes or all; nothing that a tool made."""
    candidates = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in TOP:
        candidates += (ROOT / folder).rglob("*")
    for path in sorted(candidates):
        if path.is_file() and not MADE & set(path.relative_to(ROOT).parts) and (not suffixes or path.suffix in suffixes):
            yield path


def shown(path: Path, line: int | None = None) -> str:
    """A place as messages name it."""
    return path.relative_to(ROOT).as_posix() + ("" if line is None else f":{line}")


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Absolute imports of a Python file: (line, module, names taken from it; none for `import module`)."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ()
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module, tuple(alias.name for alias in node.names)

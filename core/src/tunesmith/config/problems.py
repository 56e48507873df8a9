"""What is wrong with a config: one sentence each, with the file, the line and the table it is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..words import bare
from .lines import Key
from .overrides import Override, label


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it stands, and what to do about it.

    `file` is the config file as it was given, or the `--set` that is to blame, which has no line. `table` is written as
    in the file, such as "[plugins.edges]", and empty where a problem belongs to none.
    """

    file: str
    line: int | None
    table: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.table} {self.message}" if self.table else f"{place}: {self.message}"


class ConfigErrors(InputError):
    """Everything that is wrong with a config, sorted by line: those without one first, those of `--set` last."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        unique = dict.fromkeys(problems)
        self.problems = sorted(unique, key=lambda problem: (problem.file.startswith(label("")), problem.line or 0))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True)
class Source:
    """Where the keys of a merged config come from: lines of a file, or overrides."""

    file: Path
    lines: Mapping[Key, int]
    overrides: Sequence[Override] = ()

    def place(self, key: Key) -> tuple[str, int | None]:
        """The file and line of a key or, if it is not there, of the innermost table around it; or the override that set it."""
        for override in reversed(self.overrides):
            if key[: len(override.key)] == override.key:
                return str(override), None
        for length in range(len(key), 0, -1):
            part = key[:length]
            if part in self.lines:
                return str(self.file), self.lines[part]
            for override in reversed(self.overrides):
                if override.key[:length] == part:
                    return str(override), None
        return str(self.file), None

    def problem(self, key: Key, message: str) -> Problem:
        """A problem of the setting or table at `key`; () is the file as a whole."""
        return Problem(*self.place(key), heading(key), message)


@dataclass(frozen=True)
class Findings:
    """The problems found so far in a config that is being read."""

    source: Source
    problems: list[Problem] = field(default_factory=list)

    def add(self, key: Key, message: str) -> None:
        """Note a problem of the setting or table at `key`."""
        self.problems.append(self.source.problem(key, message))

    def stop_if_any(self) -> None:
        """Raise what was found as ConfigErrors."""
        if self.problems:
            raise ConfigErrors(self.problems)


def heading(key: Key) -> str:
    """The table that a key belongs to, as it is written in the file."""
    if not key:
        return ""
    if key[0] == "datasets":
        return "[[datasets]]"
    if key[:2] == ("validation", "samples") and len(key) > 2:
        return "[[validation.samples]]"
    return f"[{'.'.join(map(bare, key[: 2 if key[0] == 'plugins' else 1]))}]"

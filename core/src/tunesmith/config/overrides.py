"""`--set run.steps=10`: settings from the command line, put over those of the file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

from ..strictness import Typed
from .lines import Key


@dataclass(frozen=True)
class Override:
    """One `--set KEY=VALUE`; `key` numbers the elements of arrays, `value` is what TOML makes of the text."""

    text: str
    key: Key
    value: Any

    def __str__(self) -> str:
        return label(self.text)


def label(text: str) -> str:
    """How messages name an override, on one line."""
    return f"--set {text if text.isprintable() else repr(text)}"


def apply(text: str, data: dict[str, Any]) -> Override:
    """Put one `KEY=VALUE` into `data`; ValueError with a sentence if it cannot be.

    KEY is a dotted TOML key whose numbers count array elements from 0. VALUE is a TOML value, or the text as it
    stands if it is none.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # how the system hands over other bytes
        raise ValueError("is not UTF-8 text")
    left, equals, right = text.partition("=")
    names = _names(left)
    if not equals or not names:
        raise ValueError("should be KEY=VALUE, such as run.steps=10 or datasets.0.repeats=2")
    value = _value(right.strip())
    here: Any = data
    key: Key = ()
    for name in names[:-1]:
        part = _part(here, name, key)
        if isinstance(here, dict):
            here.setdefault(part, {})
        here, key = here[part], (*key, part)
    part = _part(here, names[-1], key)
    here[part] = value
    return Override(text, (*key, part), value)


def _names(key: str) -> list[str]:
    """The parts of a dotted key; none if it is no key."""
    try:
        here: Any = tomllib.loads(f"{key} = true")
    except (tomllib.TOMLDecodeError, RecursionError):
        return []
    names: list[str] = []
    while isinstance(here, dict) and len(here) == 1:
        [(name, here)] = here.items()
        names.append(name)
    return names if here is True else []


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # besides syntax: a number with thousands of digits
        return Typed(text)
    return parsed["value"] if len(parsed) == 1 else Typed(text)


def _part(here: Any, name: str, key: Key) -> str | int:
    """The next part of the key, as `here` counts it."""
    so_far = ".".join(map(str, key))
    if isinstance(here, dict):
        return name
    if not isinstance(here, list):
        raise ValueError(f"{so_far} is no table, so it has no {name!r}")
    if not name.isdecimal() or int(name) >= len(here):
        raise ValueError(f"{so_far} is an array of {len(here)}, counted from 0; it has no {name!r}")
    return int(name)

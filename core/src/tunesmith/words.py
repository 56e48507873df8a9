"""How messages name what a person typed: values on one line, and the known name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

_LONGEST = 60


def bare(part: str | int) -> str:
    """A part of a key as TOML writes it: quoted only where it must be."""
    text = str(part)
    return text if text and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in text) else repr(text)


def printable(text: str) -> str:
    """A text on one line of a terminal or a log: what would break it, or act on it, is written as an escape."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def shown(value: Any) -> str:
    """A value from a config, on one line and cut where it is long."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, list):
        text = f"[{', '.join(map(shown, value[:_LONGEST]))}]"
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(map(bare, value))}}}"
    elif isinstance(value, int):
        text = repr(value) if abs(value) < 10**_LONGEST else "a number of very many digits"
    elif isinstance(value, str | float):
        text = repr(value[: 2 * _LONGEST] if isinstance(value, str) else value)
    else:
        text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that somebody who typed `name` probably meant, or None."""
    by_lower = {one.lower(): one for one in sorted(known)}
    matches = difflib.get_close_matches(name[: 2 * _LONGEST].lower(), by_lower, 1)
    return by_lower[matches[0]] if matches else None


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown setting 'wieght'; did you mean 'weight'?`, or what there is where nothing is near."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f"did you mean {near!r}?" if near else f"known are {', '.join(names)}" if names else "there are none"
    return f"unknown {what} {shown(name)}; {hint}"

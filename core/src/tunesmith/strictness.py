"""Settings are taken as they are written: text that looks like a number or a flag is none, and a flag is no number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import InitErrorDetails

_FLAGS = frozenset({"0", "1", "f", "false", "n", "no", "off", "on", "t", "true", "y", "yes"})
"""What pydantic takes for true or false."""


class Typed(str):
    """Text from where nothing tells text from other values, such as a command line: it may stand for a number or a flag."""

    __slots__ = ()


def untyped(value: Any) -> Any:
    """What text from a command line is where no type says what it may stand for: a flag or a number if it looks like one."""
    if not isinstance(value, Typed):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    return float(value) if _looks_like_a_number(value) else str(value)


def misread(written: Any, value: Any, place: tuple[str | int, ...] = ()) -> Iterator[InitErrorDetails]:
    """Where pydantic has made a value of another kind of what is written; text that is read by a validator of its own must not look so."""
    if isinstance(value, bool):
        if type(written) in (int, float) or (type(written) is str and written.strip().lower() in _FLAGS):
            yield InitErrorDetails(type="bool_type", loc=place, input=written)
    elif isinstance(value, int | float):
        if type(written) is bool or (type(written) is str and _looks_like_a_number(written)):
            yield InitErrorDetails(type="int_type" if isinstance(value, int) else "float_type", loc=place, input=written)
    elif isinstance(value, Mapping | BaseModel) and isinstance(written, Mapping):
        read = value if isinstance(value, Mapping) else dict(value)
        for name in written.keys() & read.keys():
            yield from misread(written[name], read[name], (*place, name))
    elif isinstance(value, list | tuple) and isinstance(written, list | tuple) and len(written) == len(value):
        for number, pair in enumerate(zip(written, value, strict=True)):
            yield from misread(*pair, (*place, number))


def _looks_like_a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

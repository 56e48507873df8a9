"""What a plan is written in: tables, lines, and sizes as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Grid:
    """A table: column heads, rows, and what they are called where there are too many to show."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    what: str = "rows"


@dataclass(frozen=True)
class Line:
    """One line; `style` is rich's."""

    text: str
    style: str = ""


Block: TypeAlias = Grid | Line


def size_text(count: int | None) -> str:
    """Bytes as a person reads them."""
    if count is None:
        return "unknown"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size / 10:
            return f"{count / size:.2f} {unit}"
    return f"{count / 2**10:.1f} KiB"

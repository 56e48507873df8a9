"""Code blocks of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.house import files, shown

FENCE = re.compile(r'(?ms)^```(\w+)(?: title="(\S+)")?\n(.*?)^```$')


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, the file that its title names, its text."""

    place: str
    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that name a language."""
    text = page.read_text()
    return [Block(shown(page, text.count("\n", 0, match.start()) + 1), match[1], match[2], match[3]) for match in FENCE.finditer(text)]


def all_blocks(language: str) -> list[Block]:
    """The blocks of one language on every page of the repository."""
    return [block for page in files(".md") for block in blocks(page) if block.language == language]

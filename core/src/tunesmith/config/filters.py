"""`caption_filter`: what is taken out of captions, or replaced in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from ..words import shown

Filter: TypeAlias = Callable[[str], str]
"""What one entry of a filter makes of a caption."""
_REPLACEMENT = re.compile(r"s/((?:[^/\\]|\\.)+)/((?:[^/\\]|\\.)*)/")
MOST_BYTES = 2**24
"""A larger file is no list of texts."""


def read_filters(given: Sequence[str] | Path) -> tuple[Filter, ...]:
    """The entries of a `caption_filter`, in their order; ValueError with what is wrong with one or with the file.

    An entry is a text that is taken out wherever it stands, or `s/PATTERN/TEXT/`: what a regular expression finds is
    replaced. A slash within is written with a backslash before it. Of a file each line is an entry, without the end of the line.
    """
    entries = _lines(given) if isinstance(given, Path) else given
    return tuple(map(_filter, filter(None, entries)))


def _lines(path: Path) -> list[str]:
    try:
        if not path.is_file():
            raise ValueError(f"{path} is no file" if path.exists() else f"{path} is not there")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} is larger than {MOST_BYTES // 2**20} MiB, which is no list of texts")
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it in that encoding") from None


def _filter(entry: str) -> Filter:
    if not entry.startswith("s/"):
        return lambda caption: caption.replace(entry, "")
    parts = _REPLACEMENT.fullmatch(entry)
    if parts is None:
        raise ValueError(f"{shown(entry)} begins as a replacement does and should be s/PATTERN/TEXT/, with \\/ for a slash in either")
    found, text = (part.replace("\\/", "/") for part in parts.groups())
    try:
        pattern = re.compile(found)
        pattern.sub(text, "")  # which looks at the text, whatever there is to replace
    except (re.error, IndexError) as error:
        raise ValueError(f"{shown(entry)} is no regular expression with its replacement ({error})") from None
    return lambda caption: pattern.sub(text, caption)

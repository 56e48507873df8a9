"""What samples are called: captions from files beside them, names, columns or one prompt, and what is made of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from ..config.datasets import CaptionShuffle, SampleTable
from ..config.filters import read_filters
from ..errors import InputError
from ..randomness import numpy_generator

Texts: TypeAlias = tuple[str, ...]
COLUMNS = ("caption", "text")
"""Where captions are in a file list or a .json file, if the table does not say."""
BESIDE: Mapping[str, Literal[".txt", ".json"]] = {"textfile": ".txt", "json": ".json"}
"""The endings of the files that captions are in, by `captions`."""

FILTERED = "caption_filter leaves nothing of its caption"
"""Why a file has no caption that had one."""


class NoCaption(Exception):
    """Why a file has no caption; the sample is left out and counted."""


def beside(where: str, ending: str) -> str:
    """The file of the same name with another ending."""
    return os.path.splitext(where)[0] + ending


class Captions:
    """Makes the captions of one dataset's samples as its table says. `emptied` names samples that lost one to the filter.

    InputError if the filter's file has changed since the table was checked, and is none now.
    """

    def __init__(self, table: SampleTable) -> None:
        self.table = table
        try:
            self.filters = read_filters(table.caption_filter)
        except ValueError as error:
            raise InputError(f"caption_filter: {error}") from error
        self.emptied: list[str] = []
        prefix = table.caption_prefix
        self.prefix = prefix if not prefix or prefix[-1].isspace() else f"{prefix} "
        self._every: Texts | None = None

    @property
    def ending(self) -> Literal[".txt", ".json"] | None:
        """The ending of the files beside the samples that the captions are in, or None if they are in none."""
        return BESIDE.get(self.table.captions)

    def of(self, name: str, columns: Mapping[str, Any], text: str | None) -> Texts:
        """The captions that a sample may have, at least one; NoCaption with the reason if there is none.

        `text` is the content of the file beside the sample, if `ending` says that there should be one. textfile: its lines,
        stripped, without empty ones. json: what stands under its key. filename: the name without its ending, underscores
        read as spaces. instance: the dataset's one prompt. column: what the file list says. Each is filtered, then shuffled
        into alternatives, of which none comes twice, then begun with the prefix.
        """
        if self.table.captions == "instance":
            if self._every is None:
                self._every = self._made(name, (self.table.instance_prompt or "",))
            return self._every
        return self._made(name, self._given(name, columns, text))

    def notes(self) -> Iterator[str]:
        """What the filter took away."""
        if self.emptied:
            count = len(self.emptied)
            yield f"caption_filter leaves nothing of a caption of {count} samples, which keep their other captions ({self.emptied[0]})"

    def _given(self, name: str, columns: Mapping[str, Any], text: str | None) -> Texts:
        if self.table.captions == "filename":
            return (os.path.splitext(name.rpartition("/")[2])[0].replace("_", " ").strip(),)
        if self.table.captions == "column":
            return self._under(columns, "what lists the files has no column", "its caption")
        if self.table.captions == "json":
            return self._under(_object(text or ""), "its .json file has no key", "its caption in the .json file")
        return lines_of(text or "")

    def _under(self, values: Mapping[str, Any], otherwise: str, what: str) -> Texts:
        """The captions under the table's key, or the first of the usual ones that is there."""
        asked = self.table.caption_column
        keys = [key for key in ((asked,) if asked is not None else COLUMNS) if key in values]
        if not keys:
            raise NoCaption(f"{otherwise} {' or '.join(map(repr, (asked,) if asked is not None else COLUMNS))}")
        value = values[keys[0]]
        if hasattr(value, "tolist"):  # a column of arrays
            value = value.tolist()
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            raise NoCaption(f"{what} is empty")
        texts = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        if not all(isinstance(one, str) for one in texts):
            raise NoCaption(f"{what} is no text and no list of texts")
        found = tuple(one.strip() for one in texts if one.strip())
        if not found:
            raise NoCaption(f"{what} is empty")
        return found

    def _made(self, name: str, given: Texts) -> Texts:
        kept = given
        if self.filters:
            kept = tuple(filter(None, map(self._filtered, given)))
            if not kept:
                raise NoCaption(FILTERED)
            if len(kept) < len(given):
                self.emptied.append(name)
        if self.table.caption_shuffle is not None:
            kept = tuple(dict.fromkeys(text for one in kept for text in shuffled(one, self.table.caption_shuffle)))
        return tuple(self.prefix + text for text in kept) if self.prefix else kept

    def _filtered(self, text: str) -> str:
        for change in self.filters:
            text = change(text)
        return text.strip()


def lines_of(text: str) -> Texts:
    """The lines of a text file as captions; NoCaption if there is none."""
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise NoCaption("the .txt file is empty")
    return lines


def shuffled(text: str, how: CaptionShuffle) -> Iterator[str]:
    """The alternatives of a caption: a function of the caption alone, so that every run and every sample has the same.

    The parts are written with the separator, and a space if the caption has one behind it.
    """
    parts = [part.strip() for part in text.split(how.separator) if part.strip()]
    head, tail = parts[: how.keep], parts[how.keep :]
    if how.original or len(tail) < 2:
        yield text
    if len(tail) < 2:
        return
    joint = f"{how.separator} " if f"{how.separator} " in text else how.separator
    for number in range(how.variants):
        order = numpy_generator(0, "caption shuffle", number, text).permutation(len(tail))
        yield joint.join([*head, *(tail[index] for index in order)])


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise NoCaption("the .json file is not valid JSON") from None
    if not isinstance(found, dict):
        raise NoCaption("the .json file holds no object of keys and values")
    return found

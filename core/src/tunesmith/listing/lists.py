"""File lists: the files of a dataset, and what is said of them by column, in one .txt, .csv, .jsonl or .parquet file."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..config.datasets import DatasetTable, SampleTable
from ..data.captions import COLUMNS
from ..data.funnel import Funnel
from ..errors import InputError
from ..paths import is_url
from ..sources import Entry, Listing
from ..words import shown
from .folder import NO_COLUMNS, NOT_TEXT, OUTSIDE, AnyKind, endings, homes_of, is_text, other_ending, refusal, within

LISTS = (".txt", ".csv", ".jsonl", ".parquet")
"""Endings of file lists, in lower case."""
FILE_COLUMNS = ("file", "file_name", "path", "image", "video")
"""Columns that name the files where the table names none; the first that is there does."""
MOST_LINE = 2**20
"""A longer line is none of a file list."""
_PATH_TYPES = ("string", "large_string", "dictionary<values=string", "dictionary<values=large_string", "null")
_ROWS = 4096
"""Rows of a .parquet file that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a list: where it stands, the file that it names, its columns of captions; or why it cannot be read."""

    where: str
    file: str | None = None
    columns: Mapping[str, Any] = field(default_factory=lambda: NO_COLUMNS)
    fault: str = "the row names no file"


def list_rows(file: Path, table: DatasetTable, kind: AnyKind, funnel: Funnel, faults: Mapping[str, str] = NO_COLUMNS) -> Listing:
    """The files that a list names, in the order of their names; they have to be below the list's folder.

    Every row counts, and those that cannot be used are told to the funnel. With `captions = "column"` an entry has the
    columns of captions that its row has, with None for what is not a number. `faults` tells by name why files are not
    there. InputError if the list cannot be read.
    """
    folder = file.parent.absolute()
    places = _Places(folder, kind)
    entries: dict[str, Entry] = {}
    for row in read_rows(file, table):
        funnel.total += 1
        name = None if row.file is None else below(row.file, folder)
        if row.file is None:
            funnel.lose("readable", row.fault, row.where)
        elif name is None:
            funnel.lose("readable", _outside(row.file), f"{row.where}: {_shortened(row.file)}")
        elif name in entries:
            funnel.lose("readable", "the list names it more than once; its first row counts", name)
        elif (reason := faults.get(name) or places.refusal(name)) is not None:
            funnel.lose("readable", reason, _shortened(name))
        else:
            entries[name] = Entry(name, f"{folder}{os.sep}{name}", row.columns)
    return Listing([entries[name] for name in sorted(entries)], places.homes)


def read_rows(file: Path, table: DatasetTable) -> Iterator[Row]:
    """The rows of a list; InputError if it is none, or has no column that names files."""
    reader = {".txt": _from_text, ".csv": _from_csv, ".jsonl": _from_json_lines, ".parquet": _from_parquet}[file.suffix.lower()]
    try:
        yield from reader(file, table)
    except OSError as error:
        raise InputError(f"the file list {file} cannot be read ({error.strerror or error})") from error


def below(file: str, folder: Path) -> str | None:
    """The name below `folder` of a file that a list in it names, with slashes; None if it is not below."""
    if is_url(file) or "\0" in file:
        return None
    if os.path.isabs(file):
        file = os.path.relpath(os.path.normpath(file), os.path.normpath(folder))
    name = os.path.normpath(file)
    return None if name.split(os.sep)[0] in (os.pardir, os.curdir) else name.replace(os.sep, "/")


def _outside(file: str) -> str:
    if is_url(file):
        return "a URL in a file list is not followed; give the URL of the list or of the folder as the dataset's `path`"
    return "its name holds a NUL character" if "\0" in file else "it is not below the file list's folder, and nothing else is read"


class _Places:
    """Tells which files below a list's folder can be read."""

    def __init__(self, folder: Path, kind: AnyKind) -> None:
        self.homes = homes_of(folder)
        self._folder = str(folder)
        self._kind = kind
        self._known: dict[str, bool] = {"": True}

    def refusal(self, name: str) -> str | None:
        """Why a file cannot be used, or None."""
        if not is_text(name):
            return NOT_TEXT
        ending = os.path.splitext(name)[1].lower()
        if ending not in self._kind.suffixes:
            return other_ending(name, self._kind) or f"{ending or 'a file without ending'} is not read, only {endings(self._kind)}"
        parent = name.rpartition("/")[0]
        if parent not in self._known:
            self._known[parent] = within(f"{self._folder}/{parent}", self.homes)
        return refusal(f"{self._folder}/{name}", self.homes) if self._known[parent] else OUTSIDE


def _from_text(file: Path, table: DatasetTable) -> Iterator[Row]:
    """A path a line; blank lines do not count."""
    if table.file_column is not None or _caption_columns(table):
        key = "file_column" if table.file_column is not None else 'captions = "column"'
        raise InputError(f"the file list {file} has no columns, so `{key}` needs a .csv, .jsonl or .parquet file")
    for number, line in _lines(file):
        if line.strip():
            yield Row(f"line {number}", line.strip())


def _from_csv(file: Path, table: DatasetTable) -> Iterator[Row]:
    """Cells separated by commas, semicolons or tabs; the first row names the columns."""
    lines = _lines(file)
    _, head = next(lines, (0, ""))
    delimiter = max(",;\t", key=head.count)
    columns = [name.strip() for name in next(csv.reader([head], delimiter=delimiter), [])]
    number = columns.index(_file_column(file, table, columns))
    wanted = [(name, columns.index(name)) for name in _known_captions(file, table, columns)]
    rows = csv.reader((line for _, line in lines), delimiter=delimiter)
    try:
        for row in rows:
            where = f"line {rows.line_num + 1}"
            if len(row) > len(columns):
                yield Row(where, fault=f"the row has {len(row)} cells for {len(columns)} columns; a text with {delimiter!r} needs quotes")
            elif row:
                cells = {name: row[place] for name, place in wanted if place < len(row)}
                yield _row(where, row[number] if number < len(row) else None, cells)
    except csv.Error as error:
        raise InputError(
            f"the file list {file} cannot be read at line {rows.line_num + 1} ({error}); is a quotation mark left open?"
        ) from None


def _from_json_lines(file: Path, table: DatasetTable) -> Iterator[Row]:
    """A JSON object a line; blank lines do not count."""
    wanted = _caption_columns(table)
    column: str | None = None
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            yield Row(f"line {number}", fault="the line is not a JSON object")
            continue
        column = column or _file_column(file, table, list(row))
        yield _row(f"line {number}", row.get(column), {name: row[name] for name in wanted if name in row})


def _from_parquet(file: Path, table: DatasetTable) -> Iterator[Row]:
    """Only the columns that are needed are read, some thousand rows at a time."""
    try:
        parquet = import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise InputError(f"the file list {file} needs pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(file) as opened:
            columns = opened.schema_arrow.names
            column = _file_column(file, table, columns)
            wanted = _known_captions(file, table, columns)
            kind = str(opened.schema_arrow.field(column).type)
            if not kind.startswith(_PATH_TYPES):
                raise InputError(f"the file list {file}: column {column!r} holds no paths but {kind[:80]}; {_choice(columns)}")
            number = 0
            for batch in opened.iter_batches(_ROWS, columns=[column, *wanted]):
                values = batch.to_pydict()
                for place, name in enumerate(values[column]):
                    number += 1
                    yield _row(f"row {number}", name, {caption: values[caption][place] for caption in wanted})
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise InputError(f"the file list {file} is no sound .parquet file ({str(error).splitlines()[0]})") from None


def _row(where: str, file: Any, columns: dict[str, Any]) -> Row:
    name = file if isinstance(file, str) and file.strip() else None
    return Row(where, name, {key: _sense(value) for key, value in columns.items()} or NO_COLUMNS)


def _sense(value: Any) -> Any:
    """The value of a cell; None for NaN, which is how tables write that there is none."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _file_column(file: Path, table: DatasetTable, columns: Sequence[str]) -> str:
    candidates = FILE_COLUMNS if table.file_column is None else (table.file_column,)
    for name in candidates:
        if name in columns:
            return name
    missing = f"no column {table.file_column!r}" if table.file_column else f"no column that names the files ({', '.join(FILE_COLUMNS)})"
    raise InputError(f"the file list {file} has {missing}; {_choice(columns)}")


def _choice(columns: Sequence[str]) -> str:
    there = ", ".join(shown(str(name)) for name in columns[:20]) or "no columns at all"
    return f"it has {there}{', ...' if len(columns) > 20 else ''}: name the right one in `file_column`"


def _caption_columns(table: DatasetTable) -> tuple[str, ...]:
    """The columns that captions may be in; none if they are not in columns."""
    if not isinstance(table, SampleTable) or table.captions != "column":
        return ()
    return COLUMNS if table.caption_column is None else (table.caption_column,)


def _known_captions(file: Path, table: DatasetTable, columns: Sequence[str]) -> list[str]:
    """The columns of captions that are there; InputError if some are asked for and none is."""
    wanted = _caption_columns(table)
    found = [name for name in wanted if name in columns]
    if wanted and not found:
        there = _choice(columns).replace("file_column", "caption_column")
        raise InputError(f"the file list {file} has no column {' or '.join(map(repr, wanted))} for captions; {there}")
    return found


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a UTF-8 file, with their ends; InputError if one is none or has no end."""
    with file.open("rb") as opened:
        number = 0
        while content := opened.readline(MOST_LINE + 1):
            number += 1
            if len(content) > MOST_LINE:
                raise InputError(f"the file list {file}: line {number} is longer than {MOST_LINE // 2**20} MiB, so this is no file list")
            try:
                yield number, content.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"the file list {file}: line {number} is not UTF-8; save the list in that encoding") from None


def _shortened(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."

"""What the headers and caption files of datasets told, remembered so that only changed files are read again."""

from __future__ import annotations

import json
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeAlias, TypeVar

from ..data.database import explained, open_database
from ..kinds import Kind, Probe, Unreadable, blame_kind
from .folder import AnyKind, within

READERS = 8
"""Files that are read at once."""
MOST_BYTES = 2**20
"""A larger text file holds no captions but something else."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS folders (number INTEGER PRIMARY KEY, path BLOB UNIQUE);
CREATE TABLE IF NOT EXISTS files (
    folder INT, name BLOB, reading TEXT, state TEXT, value TEXT, fault TEXT, PRIMARY KEY (folder, name, reading)
) WITHOUT ROWID;
"""
_CHUNK = 8192
"""Files that are looked up, read and committed together."""
_QUERY_NAMES = 500
"""Names that are asked for in one statement."""
_READ_TOGETHER = 16
"""Files that a reader takes at a time."""

T = TypeVar("T")

_Row: TypeAlias = tuple[str | None, str | None]
"""What is remembered of a file: its value, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class NoText:
    """Why there is nothing from a text file; `missing` if there is no such file."""

    reason: str
    missing: bool = False


class Index:
    """Probes and texts of files, remembered in an SQLite file by path, size, times of modification and change, and inode.

    Without a file nothing is remembered. May be used by several threads, and the file by several processes.
    """

    def __init__(self, database: Path | None) -> None:
        self._memory = None if database is None else _Memory(database)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        if self._memory is not None:
            self._memory.close()

    def probed(self, kind: AnyKind, files: Sequence[str]) -> list[Probe | Unreadable]:
        """What each file's header tells, or why it cannot be used."""
        return self._read_all(_Probes(kind), files)

    def texts(self, files: Sequence[str], homes: Sequence[Path] | None = None) -> list[str | NoText]:
        """The content of each text file, or why there is none. With `homes`, a link that leaves these folders is not followed."""
        return self._read_all(_Texts(homes), files)

    def _read_all(self, reading: _Reading[T], files: Sequence[str]) -> list[T]:
        results: list[T] = []
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(files), _CHUNK):
                results += self._read_some(reading, files[start : start + _CHUNK], pool)
        return results

    def _read_some(self, reading: _Reading[T], files: Sequence[str], pool: ThreadPoolExecutor) -> list[T]:
        """The results of some thousand files: as remembered, or else read and then remembered."""
        known = {} if self._memory is None else self._memory.rows(reading.name, files)
        results: list[T | None] = [None] * len(files)
        unknown: list[tuple[int, os.stat_result]] = []
        for number, file in enumerate(files):
            status = reading.look(file)  # before the file is read: what changes it meanwhile shows the next time
            if not isinstance(status, os.stat_result):
                results[number] = status
                continue
            state, value, fault = known.get(file, ("", None, None))
            if state == _state(status):
                results[number] = reading.remembered(file, value, fault)
            if results[number] is None:
                unknown.append((number, status))
        together = [unknown[start : start + _READ_TOGETHER] for start in range(0, len(unknown), _READ_TOGETHER)]
        read = pool.map(lambda some: [reading.read(files[number], status) for number, status in some], together)
        rows = []
        for (number, status), (result, lasts) in zip(unknown, (one for some in read for one in some), strict=True):
            results[number] = result
            if lasts:
                rows.append((files[number], _state(status), *reading.row(result)))
        if self._memory is not None and rows:
            self._memory.remember(reading.name, rows)
        return [result for result in results if result is not None]


class _Reading(ABC, Generic[T]):
    """One way to read files; `name` names it in the database."""

    name: str

    @abstractmethod
    def look(self, file: str) -> os.stat_result | T:
        """What tells whether a file has changed, or the result if that shows it already."""

    @abstractmethod
    def read(self, file: str, status: os.stat_result) -> tuple[T, bool]:
        """The result, and whether it holds as long as the file does not change."""

    @abstractmethod
    def row(self, result: T) -> _Row:
        """A result as it is remembered."""

    @abstractmethod
    def remembered(self, file: str, value: str | None, fault: str | None) -> T | None:
        """The result that was remembered, or None if it cannot be understood."""


class _Probes(_Reading[Probe | Unreadable]):
    """Headers, as a kind reads them."""

    def __init__(self, kind: AnyKind) -> None:
        self.name = kind.probing
        self._kind = kind.table.kind if isinstance(kind, Kind) else kind.probing
        self._probe = kind.probe

    def look(self, file: str) -> os.stat_result | Unreadable:
        """The state of the file itself, behind links."""
        try:
            return os.stat(file)
        except OSError as error:
            return Unreadable(Path(file), f"cannot be read ({error.strerror})")

    def read(self, file: str, status: os.stat_result) -> tuple[Probe | Unreadable, bool]:
        """The header; a fault of the file lasts as the file does, one of the system may pass."""
        try:
            return self._probe(Path(file)), True
        except Unreadable as error:
            cause = error.__cause__
            return error, not (isinstance(cause, OSError) and cause.strerror)  # the system's, not the decoder's, may pass
        except Exception as error:  # a kind's own mistake, which its file helps to find
            blame_kind(error, self._kind, "probe", file)
            raise

    def row(self, result: Probe | Unreadable) -> _Row:
        return (None, _storable(result.reason)) if isinstance(result, Unreadable) else (json.dumps(astuple(result)), None)

    def remembered(self, file: str, value: str | None, fault: str | None) -> Probe | Unreadable | None:
        return Unreadable(Path(file), fault) if fault is not None else _probe_of(value or "[]")


class _Texts(_Reading[str | NoText]):
    """Text files, whole."""

    name = "text-1"

    def __init__(self, homes: Sequence[Path] | None) -> None:
        self._homes = homes

    def look(self, file: str) -> os.stat_result | NoText:
        """The state of a regular file, behind links where these are followed."""
        try:
            status = os.lstat(file)
            if stat.S_ISLNK(status.st_mode):
                if self._homes is not None and not within(file, self._homes):
                    return NoText(f"its {_ending(file)} file is a link that leaves the dataset's folder")
                status = os.stat(file)
        except FileNotFoundError:
            return NoText(f"no {_ending(file)} file beside it", missing=True)
        except OSError as error:
            return NoText(f"the {_ending(file)} file cannot be read ({error.strerror})")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            return NoText(f"what has the name of the {_ending(file)} file is a folder, pipe or device")
        return status

    def read(self, file: str, status: os.stat_result) -> tuple[str | NoText, bool]:
        """The text; what makes it none lasts as the file does, unless it is a fault of the system."""
        if status.st_size > MOST_BYTES:
            return NoText(f"the {_ending(file)} file is larger than {MOST_BYTES // 2**20} MiB, which is no caption"), True
        try:
            text = Path(file).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            return NoText(f"the {_ending(file)} file is not UTF-8"), True
        except OSError as error:
            return NoText(f"the {_ending(file)} file cannot be read ({error.strerror})"), False
        if "\0" in text:
            return NoText(f"the {_ending(file)} file holds NUL characters, so it is not UTF-8 text"), True
        return text, True

    def row(self, result: str | NoText) -> _Row:
        return (None, _storable(result.reason)) if isinstance(result, NoText) else (result, None)

    def remembered(self, file: str, value: str | None, fault: str | None) -> str | NoText | None:
        return NoText(fault) if fault is not None else value


class _Memory:
    """The database: for each folder, name and reading what was read, and of which state of the file."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._connection = open_database(database, _SCHEMA)
        self._folders: dict[bytes, int] = {}

    def close(self) -> None:
        self._connection.close()

    def rows(self, reading: str, files: Sequence[str]) -> dict[str, tuple[str, str | None, str | None]]:
        """State, value and fault of those files that are remembered."""
        found: dict[str, tuple[str, str | None, str | None]] = {}
        with self._lock, explained(self._database):
            for folder, names in _by_folder(files).items():
                number = self._folder(folder)
                every = [] if number is None else list(names)
                for start in range(0, len(every), _QUERY_NAMES):
                    some = every[start : start + _QUERY_NAMES]
                    marks = ",".join("?" * len(some))
                    query = f"SELECT name, state, value, fault FROM files WHERE folder = ? AND reading = ? AND name IN ({marks})"
                    for name, state, value, fault in self._connection.execute(query, (number, reading, *some)):
                        found[names[name]] = (state, value, fault)
        return found

    def remember(self, reading: str, rows: Sequence[tuple[str, str, str | None, str | None]]) -> None:
        """Keep rows of file, state, value and fault."""
        with self._lock, explained(self._database), self._connection:  # commits, or rolls back on an error
            self._connection.execute("BEGIN IMMEDIATE")
            folders = {folder: self._made_folder(folder) for folder in _by_folder([row[0] for row in rows])}
            written = []
            for file, *row in rows:
                folder, name = _split(file)
                written.append((folders[folder], name, reading, *row))
            self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", written)
        self._folders |= folders

    def _folder(self, path: bytes) -> int | None:
        """The number of a folder, if it has one."""
        if path not in self._folders:
            row = self._connection.execute("SELECT number FROM folders WHERE path = ?", (path,)).fetchone()
            if row is None:
                return None
            self._folders[path] = row[0]
        return self._folders[path]

    def _made_folder(self, path: bytes) -> int:
        number = self._folder(path)
        if number is None:
            number = self._connection.execute("INSERT INTO folders (path) VALUES (?)", (path,)).lastrowid
        return int(number or 0)


def _by_folder(files: Sequence[str]) -> dict[bytes, dict[bytes, str]]:
    """The files by their names, by their folders."""
    folders: dict[bytes, dict[bytes, str]] = {}
    for file in files:
        folder, name = _split(file)
        folders.setdefault(folder, {})[name] = file
    return folders


def _split(file: str) -> tuple[bytes, bytes]:
    """Folder and name, in bytes: a folder's name may be no text."""
    folder, _, name = os.fsencode(file).rpartition(os.fsencode(os.sep))
    return folder, name


def _state(status: os.stat_result) -> str:
    """What changes with a file; a text, because inodes and times may exceed the integers of SQLite."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _storable(reason: str) -> str:
    return reason.encode(errors="backslashreplace").decode()


def _ending(file: str) -> str:
    return os.path.splitext(file)[1]


@lru_cache(maxsize=65_536)
def _probe_of(value: str) -> Probe | None:
    """The probe that was remembered; files of the same size share one. None if another version has written it."""
    values = json.loads(value)
    return Probe(*values) if len(values) == len(fields(Probe)) else None

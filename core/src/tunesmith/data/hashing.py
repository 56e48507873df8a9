"""Content hashes of files, remembered so that a file is read again only when it has changed."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from ..errors import InputError
from .database import explained, open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS hashes (
    path TEXT PRIMARY KEY, size INT, mtime_ns INT, ctime_ns INT, inode INT, hash TEXT
) WITHOUT ROWID;
"""
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
DIGEST_SIZE = 20
QUERY_FILES = 500
"""Files that are asked for in one statement."""
SAVED_FILES = 64
"""Hashes of files just read that are remembered together at most."""
_Identity: TypeAlias = tuple[int, int, int, int]
_Row: TypeAlias = tuple[str, int, int, int, int, str]


class FileHashes:
    """Hashes of file contents (blake2b), remembered in an SQLite file by path, size, times of modification and change, and inode.

    May be used by several threads, and the file by several processes.
    """

    def __init__(self, database: Path) -> None:
        self.database = database
        self._lock = threading.Lock()
        self._connection = open_database(database, _SCHEMA)

    def __enter__(self) -> FileHashes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def of(self, file: Path) -> str:
        """The hash of a file's content; a file in a Hugging Face cache has the name of its blob. OSError if unreadable."""
        [(_, found)] = self.of_many([file])
        if isinstance(found, OSError):
            raise found
        return found

    def of_many(
        self, files: Sequence[Path], readers: Executor | None = None, before: Callable[[Path], None] = lambda file: None
    ) -> Iterator[tuple[Path, str | OSError]]:
        """The hash of each file, or why there is none: first those that are known, then those that had to be read.

        `readers` read several at once; `before` is told which file is waited for.
        """
        unknown: list[tuple[Path, str, _Identity]] = []
        for file, found in self._known(files):
            if isinstance(found, tuple):
                unknown.append((file, *found))
            else:
                yield file, found
        read = readers.map if readers is not None else map
        contents = iter(read(_content, [real for _, real, _ in unknown]))
        fresh: list[_Row] = []
        try:
            for file, real, identity in unknown:
                before(file)
                content = next(contents)
                if isinstance(content, str):
                    fresh.append((real, *identity, content))
                    if len(fresh) >= SAVED_FILES:
                        self._save(fresh)
                yield file, content
        finally:
            self._save(fresh)

    def _known(self, files: Sequence[Path]) -> Iterator[tuple[Path, str | OSError | tuple[str, _Identity]]]:
        """For each file its hash, why it cannot be read, or its real path and identity where its hash is not known."""
        folders: dict[str, tuple[str, bool]] = {}
        for start in range(0, len(files), QUERY_FILES):
            asked: list[tuple[Path, str, _Identity]] = []
            for file in files[start : start + QUERY_FILES]:
                try:
                    real, identity, blob = _identified(os.fspath(file), folders)
                except OSError as error:
                    yield file, error
                    continue
                if blob is not None:
                    yield file, blob
                else:
                    asked.append((file, real, identity))
            remembered = self._remembered([real for _, real, _ in asked])
            for file, real, identity in asked:
                row = remembered.get(real)
                yield file, row[1] if row is not None and row[0] == identity else (real, identity)

    def _remembered(self, paths: Sequence[str]) -> dict[str, tuple[_Identity, str]]:
        query = f"SELECT path, size, mtime_ns, ctime_ns, inode, hash FROM hashes WHERE path IN ({','.join('?' * len(paths))})"
        with self._lock, explained(self.database):
            rows = self._connection.execute(query, paths)
            return {path: ((size, mtime, ctime, inode), content) for path, size, mtime, ctime, inode, content in rows}

    def _save(self, fresh: list[_Row]) -> None:
        if fresh:
            with self._lock, explained(self.database), self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?, ?)", fresh)
            fresh.clear()

    def combined(self, paths: Iterable[Path]) -> str:
        """One hash over files and folders: of the names below each path and the contents; InputError if one is missing."""
        whole = hashlib.blake2b(digest_size=DIGEST_SIZE)
        for path in paths:
            if not path.exists():
                raise InputError(f"{path} is not there, so it cannot be fingerprinted")
            files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            for file in files:
                name = file.relative_to(path).as_posix() if path.is_dir() else file.name
                whole.update(f"{name}\0{self.of(file)}\n".encode())
            whole.update(b"\n")
        return whole.hexdigest()


def _identified(file: str, folders: dict[str, tuple[str, bool]]) -> tuple[str, _Identity, str | None]:
    """The real path of a file, what tells that it has changed, and its hash if its name says it; `folders` are known ones."""
    parent, name = os.path.split(file)
    if parent not in folders:
        folders[parent] = _folder(parent)
    real_parent, of_blobs = folders[parent]
    real = os.path.join(real_parent, name)
    status = os.lstat(real)
    if stat.S_ISLNK(status.st_mode) or name in ("", ".", ".."):
        real = os.path.realpath(file)
        status = os.stat(real)
        of_blobs = _folder(os.path.dirname(real))[1]
    name = os.path.basename(real)
    blob = f"hub-{name}" if of_blobs and _ETAG.fullmatch(name) else None
    return real, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino), blob


def _folder(path: str) -> tuple[str, bool]:
    """The real path of a folder, and whether the cache of Hugging Face's client keeps blobs in it, named by their content."""
    real = os.path.realpath(path)
    return real, os.path.basename(real) == "blobs" and os.path.isdir(os.path.join(os.path.dirname(real), "snapshots"))


def _content(file: str) -> str | OSError:
    try:
        with Path(file).open("rb") as opened:
            return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=DIGEST_SIZE)).hexdigest()
    except OSError as error:
        return error

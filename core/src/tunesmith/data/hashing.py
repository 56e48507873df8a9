"""Content hashes of files, remembered so that a file is read again only when it has changed."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from ..errors import InputError
from .database import explained, open_database

_SCHEMA = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, mtime_ns INT, inode INT, hash TEXT) WITHOUT ROWID"
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
DIGEST_SIZE = 20


class FileHashes:
    """Hashes of file contents (blake2b), remembered in an SQLite file by path, size, modification time and inode.

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
        real = Path(os.path.realpath(file))
        blob = _hub_blob(real)
        if blob is not None:
            return blob
        status = real.stat()
        identity = (status.st_size, status.st_mtime_ns, status.st_ino)
        with self._lock, explained(self.database):
            row = self._connection.execute("SELECT size, mtime_ns, inode, hash FROM files WHERE path = ?", (str(real),)).fetchone()
        if row is not None and row[:3] == identity:
            return str(row[3])
        with real.open("rb") as opened:
            content = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=DIGEST_SIZE)).hexdigest()
        with self._lock, explained(self.database):
            self._connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (str(real), *identity, content))
        return content

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


def _hub_blob(real: Path) -> str | None:
    """The content's name if the file is a blob of the cache of Hugging Face's client, which names blobs by their content."""
    in_cache = real.parent.name == "blobs" and (real.parent.parent / "snapshots").is_dir()
    return f"hub-{real.name}" if in_cache and _ETAG.fullmatch(real.name) else None

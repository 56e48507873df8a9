"""SQLite files beside the cache: opened in one way, and their errors told as the user's matter."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into InputError that names the file, the setting and the remedy."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.NotSupportedError) as error:
        raise InputError(
            f"[run] cache_dir: {path} cannot be used ({error}). SQLite needs working file locks, which many network file systems "
            f"do not have: choose a folder on a local disk that this user may write to"
        ) from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"[run] cache_dir: {path} is damaged ({error}); remove it, and it is made anew") from error


def open_database(path: Path, schema: str, patience: float = PATIENCE) -> sqlite3.Connection:
    """A connection for any thread that holds its owner's lock, with a write-ahead log; InputError if that is impossible."""
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"[run] cache_dir: {path.parent} cannot be made ({error.strerror}); choose another folder") from error
        connection = sqlite3.connect(path, timeout=patience, check_same_thread=False, isolation_level=None)
        mode = _write_ahead(connection, patience)
        if mode != "wal":
            connection.close()
            raise sqlite3.NotSupportedError(f"journal mode {mode} instead of wal")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(schema)
        return connection


def _write_ahead(connection: sqlite3.Connection, patience: float) -> str:
    """Ask for a write-ahead log; the mode that SQLite answers with.

    While two processes make the same new file, SQLite refuses one of them at once, whatever the connection's own patience.
    """
    until = time.monotonic() + patience
    while True:
        try:
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return str(mode)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)

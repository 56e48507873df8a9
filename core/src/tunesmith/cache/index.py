"""The index of a cache: which entry is where, who is making which, and who uses which."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.database import explained, open_database
from ..errors import InputError

INDEX = "index.sqlite"
VERSION = 2
"""Of the tables below; 1 knew neither codecs nor fields."""
QUERY_KEYS = 500
"""Keys that are asked for in one statement."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, shard TEXT, offset INT, length INT, checksum BLOB,
    codec INT NOT NULL DEFAULT 0, field TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checked (shard TEXT PRIMARY KEY, size INT, mtime_ns INT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, writer TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses (user TEXT, part INT, keys BLOB, PRIMARY KEY (user, part));
"""
PLACE = "shard, offset, length, checksum, codec"


@dataclass(frozen=True)
class Place:
    """Where the bytes of an entry are, and what they are."""

    shard: str
    offset: int
    length: int
    checksum: bytes
    codec: int


def open_index(folder: Path) -> sqlite3.Connection:
    """The index of a cache in its newest form; InputError if a newer Tunesmith made it."""
    path = folder / INDEX
    connection = open_database(path, _SCHEMA)
    try:
        with explained(path):
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise InputError(f"[run] cache_dir: {path} was made by a newer Tunesmith; use that one, or choose another folder")
            if version < VERSION:
                _renew(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _renew(connection: sqlite3.Connection) -> None:
    """Bring the tables of an older version, if there are any, to this one."""
    with changing(connection):
        if "codec" not in {row[1] for row in connection.execute("PRAGMA table_info(entries)")}:
            connection.execute("ALTER TABLE entries ADD COLUMN codec INT NOT NULL DEFAULT 0")
            connection.execute("ALTER TABLE entries ADD COLUMN field TEXT NOT NULL DEFAULT ''")
        connection.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def changing(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction that nobody else writes meanwhile: committed, or rolled back on an error."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def rows_of(connection: sqlite3.Connection, columns: str, table: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of those keys that are there; the key is the first column."""
    for start in range(0, len(keys), QUERY_KEYS):
        some = keys[start : start + QUERY_KEYS]
        yield from connection.execute(f"SELECT key, {columns} FROM {table} WHERE key IN ({','.join('?' * len(some))})", some)


def packed_keys(keys: Iterable[str]) -> bytes:
    """Keys as the bytes that they are the digits of, one after the other."""
    return b"".join(map(bytes.fromhex, keys))


def unpacked_keys(packed: bytes) -> Iterator[str]:
    """The keys that were packed."""
    text = packed.hex()
    return (text[start : start + 40] for start in range(0, len(text), 40))

"""The cache of encoded values: append-only shard files and an SQLite index from key to place.

A key names everything that a value depends on, so nothing in it can be stale. A value is visible once its bytes are on
disk and its line in the index is committed, in this order; a writer that dies leaves unreferenced bytes and no more.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from safetensors.torch import load, save
from torch import Tensor

from ..batch import Caption, Crop, Field, Window
from ..errors import InputError
from .database import explained, open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, shard TEXT, offset INT, length INT, checksum BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checked (shard TEXT PRIMARY KEY, size INT, mtime_ns INT) WITHOUT ROWID;
"""
_VALUE = "value"
GROUP_ENTRIES = 256
"""Entries that are committed together at most."""
GROUP_BYTES = 64 * 2**20
"""Bytes that are committed together, about."""
_QUERY_KEYS = 500
"""Keys that are asked for in one statement."""


@dataclass(frozen=True)
class _Place:
    shard: str
    offset: int
    length: int
    checksum: bytes


class Cache:
    """Tensors by key in a folder that any number of processes of one machine may read and write at once.

    What this cache object wrote it can read at once, others after `flush`. `damaged` counts entries whose bytes did not
    match their checksum; each is forgotten, so that it is made anew, and told to `on_damage`.
    """

    def __init__(self, folder: Path, on_damage: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self.damaged = 0
        self.on_damage = on_damage
        self._index = folder / "index.sqlite"
        self._lock = threading.RLock()
        self._connection = open_database(self._index, _SCHEMA)
        self._readers: dict[str, BinaryIO] = {}
        self._writer: BinaryIO | None = None
        self._shard = f"shard-{uuid.uuid4().hex}.bin"
        self._waiting: dict[str, _Place] = {}
        self._waiting_bytes = 0

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def get(self, key: str) -> Tensor | None:
        """The tensor, bit for bit as it was put, or None; see `get_many`."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The tensors that are there, by key; an entry with wrong bytes is forgotten and counts as absent."""
        found: dict[str, Tensor] = {}
        with self._lock:
            for key, place in self._places(keys).items():
                content = self._read(place)
                if _checksum(content) == place.checksum:
                    found[key] = load(content)[_VALUE]
                else:
                    self._forget(key, place)
        return found

    def put(self, key: str, value: Tensor) -> None:
        """Store a tensor from any device; nothing happens if the key is there."""
        content = save({_VALUE: value.detach().cpu().contiguous()})
        with self._lock:
            if self._places([key]):
                return
            self._waiting[key] = self._append(content)
            self._waiting_bytes += len(content)
            if len(self._waiting) >= GROUP_ENTRIES or self._waiting_bytes >= GROUP_BYTES:
                self.flush()

    def put_many(self, values: Mapping[str, Tensor]) -> None:
        """Store several tensors."""
        for key, value in values.items():
            self.put(key, value)

    def contains_many(self, keys: Iterable[str]) -> set[str]:
        """Which of the keys are there."""
        with self._lock:
            return set(self._places(keys))

    def sound_many(self, keys: Iterable[str]) -> set[str]:
        """Which of the keys are there and whole; a shard's bytes are read for this only if it changed since the last time.

        What is not whole is forgotten, and counted and told once for each shard.
        """
        with self._lock:
            places = self._places(keys)
            for shard in sorted({place.shard for place in places.values()} - {self._shard}):
                self._check(shard)
            return set(self._places(places))

    def flush(self) -> None:
        """Make everything that was put durable and visible to others."""
        with self._lock:
            if self._writer is None or not self._waiting:
                return
            with self._writing():
                _sync(self._writer)
            rows = [(key, place.shard, place.offset, place.length, place.checksum) for key, place in self._waiting.items()]
            with explained(self._index), self._connection:  # commits, or rolls back on an error
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            self._waiting.clear()
            self._waiting_bytes = 0

    def close(self) -> None:
        """Flush, and close all files."""
        with self._lock:
            self.flush()
            for file in [*self._readers.values(), *([self._writer] if self._writer else [])]:
                file.close()
            if self._writer is not None:
                self._remember(self._shard, self._state(self._shard))
            self._readers.clear()
            self._writer = None
            self._connection.close()

    def _places(self, keys: Iterable[str]) -> dict[str, _Place]:
        """Where the values of those keys are that are there."""
        wanted = list(dict.fromkeys(keys))
        found = {key: self._waiting[key] for key in wanted if key in self._waiting}
        with explained(self._index):
            for start in range(0, len(wanted), _QUERY_KEYS):
                some = wanted[start : start + _QUERY_KEYS]
                query = f"SELECT key, shard, offset, length, checksum FROM entries WHERE key IN ({','.join('?' * len(some))})"
                found |= {key: _Place(*place) for key, *place in self._connection.execute(query, some)}
        return found

    def _check(self, shard: str) -> None:
        """Compare a shard that has changed with its checksums, and forget the entries that do not match."""
        state = self._state(shard)
        with explained(self._index):
            known = self._connection.execute("SELECT size, mtime_ns FROM checked WHERE shard = ?", (shard,)).fetchone()
            if known is not None and known == state:
                return
            rows = self._connection.execute("SELECT key, shard, offset, length, checksum FROM entries WHERE shard = ?", (shard,)).fetchall()
            wrong = [key for key, *place in rows if not self._is_whole(_Place(*place))]
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("DELETE FROM entries WHERE key = ? AND shard = ?", [(key, shard) for key in wrong])
        self._remember(shard, state)
        self.damaged += len(wrong)
        if wrong and self.on_damage is not None:
            self.on_damage(f"{len(wrong)} of {len(rows)} cache entries in {self.folder / shard} are damaged or gone and are made anew")

    def _is_whole(self, place: _Place) -> bool:
        return _checksum(self._read(place)) == place.checksum

    def _state(self, shard: str) -> tuple[int, int] | None:
        """What tells that a shard has changed; None if it is gone."""
        try:
            status = (self.folder / shard).stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    def _remember(self, shard: str, state: tuple[int, int] | None) -> None:
        """Trust the entries of a shard as long as it stays as it is."""
        if state is not None:
            with explained(self._index):
                self._connection.execute("INSERT OR REPLACE INTO checked VALUES (?, ?, ?)", (shard, *state))

    def _read(self, place: _Place) -> bytes:
        """The bytes at a place; fewer if the shard ends before or is gone."""
        if place.shard == self._shard and self._writer is not None:
            self._writer.flush()
        if place.shard not in self._readers:
            try:
                self._readers[place.shard] = (self.folder / place.shard).open("rb")
            except FileNotFoundError:
                return b""
        file = self._readers[place.shard]
        file.seek(place.offset)
        return file.read(place.length)

    def _append(self, content: bytes) -> _Place:
        """Write at the shard's end, wherever an interrupted write may have left it."""
        with self._writing():
            if self._writer is None:
                self._writer = (self.folder / self._shard).open("xb")
            offset = self._writer.tell()
            self._writer.write(content)
        return _Place(self._shard, offset, len(content), _checksum(content))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"[run] cache_dir: {self.folder} cannot be written to ({error.strerror or error})") from error

    def _forget(self, key: str, place: _Place) -> None:
        self.damaged += 1
        self._waiting.pop(key, None)
        with explained(self._index):
            self._connection.execute("DELETE FROM entries WHERE key = ? AND shard = ? AND offset = ?", (key, place.shard, place.offset))
            self._connection.execute("DELETE FROM checked WHERE shard = ?", (place.shard,))
        if self.on_damage is not None:
            self.on_damage(f"a cache entry in {self.folder / place.shard} is damaged and was forgotten; it is made anew when next encoded")


def sample_key(field: Field, recipe: str, file_hash: str, crop: Crop, window: Window | None = None) -> str:
    """The key of a per-sample field: what the encoder is, how its inputs are made, the files' bytes, and which part of them."""
    return _key("sample", field.key, field.fingerprint, recipe, file_hash, repr(crop), repr(window))


def caption_key(field: Field, caption: Caption) -> str:
    """The key of a field of captions: what the encoder is, and the text."""
    return _key("caption", field.key, field.fingerprint, caption.text, str(caption.negative))


def _key(*parts: str) -> str:
    whole = hashlib.blake2b(digest_size=20)
    for part in parts:
        encoded = part.encode()
        whole.update(len(encoded).to_bytes(8, "little") + encoded)
    return whole.hexdigest()


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())

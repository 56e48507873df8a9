"""The cache of encoded values: append-only shard files and an SQLite index from key to place.

A key names everything that a value depends on, so nothing in it can be stale. A value is visible once its bytes are on
disk and its line in the index is committed, in this order; a writer that dies leaves unreferenced bytes and no more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..data.database import explained
from ..errors import InputError
from .claims import Claims
from .codec import Compression, pack, unpack
from .index import INDEX, PLACE, Place, changing, open_index, packed_keys, rows_of
from .locks import Writer, lock
from .shards import Shards, checksum
from .store import Store

GROUP_ENTRIES = 256
"""Entries that are committed together at most."""
GROUP_BYTES = 64 * 2**20
"""Bytes that are committed together, about."""
GROUP_SECONDS = 5.0
"""Time after which what was put is committed with the next one, so that slow work is not lost."""
IN_USE = "in-use.lock"
"""Whoever uses a cache has a share of the lock on this file; whoever removes entries has all of it."""


class Cache(Store):
    """Tensors by key in a folder that any number of processes of one machine may read and write at once.

    What this cache object wrote it can read at once, others after `flush`. `damaged` counts entries whose bytes did not
    match their checksum; each is forgotten, so that it is made anew, and `on_damage` is told of it, once for each shard.
    """

    def __init__(self, folder: Path, on_damage: Callable[[str], None] | None = None, compression: Compression = "auto") -> None:
        super().__init__(on_damage)
        self.folder = folder
        self.compression: Compression = compression
        self._index = folder / INDEX
        self._lock = threading.RLock()
        self._connection = open_index(folder)
        held = lock(folder / IN_USE, shared=True)
        if held is None:
            self._connection.close()
            raise InputError(f"[run] cache_dir: {folder} is being pruned by another process; start again when that is done")
        self._held = held
        self._writer = Writer(folder)
        self._shards = Shards(folder, self._writer)
        self._claims = Claims(folder, self._writer)
        self._waiting: dict[str, tuple[Place, str]] = {}
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._together = False
        self._told: set[str] = set()

    def get_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The tensors that are there, by key; an entry with wrong bytes is forgotten and counts as absent."""
        found: dict[str, Tensor] = {}
        with self._lock:
            contents = {key: (place, self._shards.read(place)) for key, place in self._places(keys).items()}
        for key, (place, content) in contents.items():
            value = unpack(content, place.codec) if checksum(content) == place.checksum else None
            if value is not None:
                found[key] = value
            else:
                self._forget(key, place)
        return found

    def put(self, key: str, value: Tensor, field: str = "") -> None:
        """Store a tensor from any device; nothing happens if the key is there. `field` says what it is."""
        content, codec = pack(value, self.compression)
        with self._lock:
            if self._places([key]):
                return
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting[key] = self._shards.append(content, codec), field
            self._waiting_bytes += len(content)
            if not self._together:
                self._flush_when_due()

    def put_many(self, values: Mapping[str, Tensor], field: str = "") -> None:
        """Store several tensors of one field, which are committed together.

        So what an interrupted process leaves to be encoded is whole batches, and rounds as it would have.
        """
        with self._lock:
            self._together = True
            try:
                super().put_many(values, field)
            finally:
                self._together = False
            self._flush_when_due()

    def contains_many(self, keys: Iterable[str]) -> set[str]:
        """Which of the keys are there."""
        with self._lock:
            return set(self._shards_of(keys))

    def sound_many(self, keys: Iterable[str]) -> set[str]:
        """Which of the keys are there and whole; a shard's bytes are read for this only if it changed since the last time.

        What is not whole is forgotten, and counted and told once for each shard. A shard that another process is
        writing to is left for later: its entries are checked when they are read.
        """
        with self._lock:
            shards = self._shards_of(keys)
            before = self.damaged
            for shard in sorted(set(shards.values())):
                self._check(shard)
            return set(shards) if self.damaged == before else self.contains_many(shards)

    def claim_many(self, keys: Iterable[str]) -> set[str]:
        """Take on what is neither there nor claimed, by this cache object or by a process that lives."""
        return self._claims.take(keys)

    def release(self) -> None:
        """Give up what was claimed and not put."""
        self._claims.release()

    def others_at(self, keys: Iterable[str]) -> str | None:
        """Who else is at work on some of these keys, in words; None if nobody is."""
        return self._claims.others_at(keys)

    def use(self, user: str, part: int, keys: Sequence[str]) -> None:
        """Remember that a user, who has any number of parts, uses these keys, in place of what the part was before."""
        packed = packed_keys(keys)
        with self._lock, explained(self._index):
            row = self._connection.execute("SELECT keys FROM uses WHERE user = ? AND part = ?", (user, part)).fetchone()
            if row is None or row[0] != packed:
                self._connection.execute("INSERT OR REPLACE INTO uses VALUES (?, ?, ?)", (user, part, packed))

    def end_use(self, user: str, parts: int) -> None:
        """Remember that a user has no more than so many parts."""
        with self._lock, explained(self._index):
            self._connection.execute("DELETE FROM uses WHERE user = ? AND part >= ?", (user, parts))

    def flush(self) -> None:
        """Make everything that was put durable and visible to others."""
        with self._lock:
            if not self._waiting:
                return
            self._shards.sync()
            rows = [
                (key, place.shard, place.offset, place.length, place.checksum, place.codec, field)
                for key, (place, field) in self._waiting.items()
            ]
            with explained(self._index), changing(self._connection):
                self._connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                own = [(key, self._writer.name) for key in self._waiting]
                self._connection.executemany("DELETE FROM claims WHERE key = ? AND writer = ?", own)
            self._waiting.clear()
            self._waiting_bytes = 0
            if self._shards.is_full:
                self._end_shard()

    def close(self) -> None:
        """Flush, and close all files."""
        with self._lock:
            try:
                self.flush()
                self.release()
                self._end_shard()
            finally:
                self._shards.close()
                self._claims.close()
                self._connection.close()
                self._writer.end()
                self._held.close()

    def _flush_when_due(self) -> None:
        late = bool(self._waiting) and time.monotonic() - self._waiting_since > GROUP_SECONDS
        if late or len(self._waiting) >= GROUP_ENTRIES or self._waiting_bytes >= GROUP_BYTES:
            self.flush()

    def _end_shard(self) -> None:
        ended = self._shards.end_shard()
        if ended is not None:
            self._remember(ended, self._shards.state(ended))

    def _places(self, keys: Iterable[str]) -> dict[str, Place]:
        """Where the values of those keys are that are there."""
        wanted = list(dict.fromkeys(keys))
        found = {key: self._waiting[key][0] for key in wanted if key in self._waiting}
        with explained(self._index):
            for key, *place in rows_of(self._connection, PLACE, "entries", wanted):
                found[str(key)] = Place(*place)
        return found

    def _shards_of(self, keys: Iterable[str]) -> dict[str, str]:
        """In which shards the values of those keys are that are there."""
        wanted = list(dict.fromkeys(keys))
        with explained(self._index):
            found: dict[str, str] = dict(rows_of(self._connection, "shard", "entries", wanted))
        return found | {key: self._waiting[key][0].shard for key in wanted if key in self._waiting} if self._waiting else found

    def _check(self, shard: str) -> None:
        """Compare a shard that has changed with its checksums, and forget the entries that do not match."""
        state = self._shards.state(shard)
        with explained(self._index):
            known = self._connection.execute("SELECT size, mtime_ns FROM checked WHERE shard = ?", (shard,)).fetchone()
            if (known is not None and known == state) or self._shards.grows(shard):
                return
            rows = self._connection.execute(f"SELECT key, {PLACE} FROM entries WHERE shard = ? ORDER BY offset", (shard,)).fetchall()
            wrong = [key for key, *place in rows if not self._shards.is_whole(Place(*place))]
            with changing(self._connection):
                self._connection.executemany("DELETE FROM entries WHERE key = ? AND shard = ?", [(key, shard) for key in wrong])
        self._remember(shard, state)
        self.damaged += len(wrong)
        if wrong:
            self._tell(shard, f"{len(wrong)} of {len(rows)} cache entries in {self.folder / shard} are damaged or gone and are made anew")

    def _remember(self, shard: str, state: tuple[int, int] | None) -> None:
        """Trust the entries of a shard as long as it stays as it is."""
        if state is not None:
            with explained(self._index):
                self._connection.execute("INSERT OR REPLACE INTO checked VALUES (?, ?, ?)", (shard, *state))

    def _forget(self, key: str, place: Place) -> None:
        with self._lock:
            self.damaged += 1
            self._waiting.pop(key, None)
            with explained(self._index):
                self._connection.execute("DELETE FROM entries WHERE key = ? AND shard = ? AND offset = ?", (key, place.shard, place.offset))
                self._connection.execute("DELETE FROM checked WHERE shard = ?", (place.shard,))
        self._tell(place.shard, f"cache entries in {self.folder / place.shard} are damaged or gone and are made anew")

    def _tell(self, shard: str, sentence: str) -> None:
        if self.on_damage is not None and shard not in self._told:
            self._told.add(shard)
            self.on_damage(sentence)

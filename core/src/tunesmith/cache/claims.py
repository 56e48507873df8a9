"""Claims: which of a cache's processes is making which entry, so that none is made twice."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from ..data.database import explained
from .index import INDEX, changing, open_index, rows_of
from .locks import Writer, described, is_alive


class Claims:
    """The claims of one writer, beside those of others; those of a writer that died are void.

    It has a connection of its own, so that a claim does not wait while entries are brought to the disk. A claim ends
    with `release`, or where its entry is committed.
    """

    def __init__(self, folder: Path, writer: Writer) -> None:
        self.folder = folder
        self.writer = writer
        self._index = folder / INDEX
        self._lock = threading.Lock()
        self._connection = open_index(folder)

    def take(self, keys: Iterable[str]) -> set[str]:
        """Claim what is neither stored nor claimed by this writer or one that lives."""
        wanted = list(dict.fromkeys(keys))
        with self._lock, explained(self._index):
            self.writer.begin()
            with changing(self._connection):
                taken = {str(key) for key, *_ in rows_of(self._connection, "shard", "entries", wanted)}
                dead: dict[str, bool] = {self.writer.name: False}
                for key, holder in rows_of(self._connection, "writer", "claims", wanted):
                    name = str(holder)
                    if name not in dead:
                        dead[name] = not is_alive(self.folder, name)
                    if not dead[name]:
                        taken.add(str(key))
                void = [(name,) for name, is_dead in dead.items() if is_dead]
                self._connection.executemany("DELETE FROM claims WHERE writer = ?", void)
                mine = [key for key in wanted if key not in taken]
                self._connection.executemany("INSERT INTO claims VALUES (?, ?)", [(key, self.writer.name) for key in mine])
        return set(mine)

    def others_at(self, keys: Iterable[str]) -> str | None:
        """Who else, of those that live, has claimed some of these keys, in words."""
        with self._lock, explained(self._index):
            holders = {str(holder) for _, holder in rows_of(self._connection, "writer", "claims", list(keys))} - {self.writer.name}
            living = sorted(name for name in holders if is_alive(self.folder, name))
        return " and ".join(described(self.folder, name) for name in living) or None

    def release(self) -> None:
        """Give up all claims of this writer."""
        with self._lock, explained(self._index):
            self._connection.execute("DELETE FROM claims WHERE writer = ?", (self.writer.name,))

    def close(self) -> None:
        """Close the index."""
        self._connection.close()

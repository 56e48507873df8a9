"""Shard files: the bytes of many cache entries one after the other, appended by one writer."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from .index import Place
from .locks import Writer, is_alive

SHARD_BYTES = 2 * 2**30
"""A writer begins its next shard when one has so many bytes."""
OPEN_FILES = 64
"""Shards that are kept open for reading."""


class Shards:
    """The shards of a folder, for one thread at a time: any is read, and the writer's own are appended to."""

    def __init__(self, folder: Path, writer: Writer) -> None:
        self.folder = folder
        self.writer = writer
        self.current: str | None = None
        self._number = 0
        self._file: BinaryIO | None = None
        self._readers: OrderedDict[str, BinaryIO] = OrderedDict()

    def append(self, content: bytes, codec: int) -> Place:
        """Write at the end of the writer's shard, wherever an interrupted write may have left it."""
        with self._writing():
            if self._file is None:
                self.writer.begin()
                self._number += 1
                self.current = f"shard-{self.writer.name}-{self._number:04}.bin"
                self._file = (self.folder / self.current).open("xb")
            offset = self._file.tell()
            self._file.write(content)
        assert self.current is not None
        return Place(self.current, offset, len(content), checksum(content), codec)

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        if self._file is not None:
            with self._writing():
                _sync(self._file)

    @property
    def is_full(self) -> bool:
        """Whether it is time for another shard."""
        return self._file is not None and self._file.tell() >= SHARD_BYTES

    def end_shard(self) -> str | None:
        """Close the writer's shard, so that the next entry begins another; its name."""
        if self._file is None:
            return None
        with self._writing():
            self._file.close()
        self._file, ended, self.current = None, self.current, None
        return ended

    def read(self, place: Place) -> bytes:
        """The bytes at a place; fewer if the shard ends before, is gone or cannot be read."""
        if place.shard == self.current and self._file is not None:
            with self._writing():
                self._file.flush()
        try:
            file = self._reader(place.shard)
            file.seek(place.offset)
            return file.read(place.length)
        except OSError:
            return b""

    def is_whole(self, place: Place) -> bool:
        """Whether the bytes at a place are those that were written."""
        return checksum(self.read(place)) == place.checksum

    def state(self, shard: str) -> tuple[int, int] | None:
        """What tells that a shard has changed; None if it is gone."""
        try:
            status = (self.folder / shard).stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    def grows(self, shard: str) -> bool:
        """Whether a writer that lives may be appending to a shard."""
        writer = shard.removeprefix("shard-").removesuffix(".bin").partition("-")[0]
        return shard == self.current or (writer != self.writer.name and is_alive(self.folder, writer))

    def close(self) -> None:
        """Close all files."""
        self.end_shard()
        for file in self._readers.values():
            file.close()
        self._readers.clear()

    def _reader(self, shard: str) -> BinaryIO:
        if shard in self._readers:
            self._readers.move_to_end(shard)
        else:
            self._readers[shard] = (self.folder / shard).open("rb")
            if len(self._readers) > OPEN_FILES:
                self._readers.popitem(last=False)[1].close()
        return self._readers[shard]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"[run] cache_dir: {self.folder} cannot be written to ({error.strerror or error})") from error


def checksum(content: bytes) -> bytes:
    """What an entry's bytes are known by."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())

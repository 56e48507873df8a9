"""Batches of a run by position, read ahead by one thread."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..batch import Batch, Field, FieldValue, Ragged, Source
from ..errors import RunFailed
from .cache import Cache, caption_key
from .encode import batch_of, collate, encode, key_of, stored
from .images import Unreadable, load_pixels
from .order import Draw, Order

if TYPE_CHECKING:
    from ..run import Run

AHEAD = 4
"""Batches that wait to be taken."""
RECENT_BYTES = 16 * 2**20
"""Bytes of cache entries that stay in memory once read: all of a small dataset."""


class Loader:
    """The batches of an order with all their fields: from the cache, or decoded and encoded when they are due.

    Without a cache a file that cannot be decoded is replaced by the next of its bucket, so that a batch stays a function
    of its position; `on_unreadable` is told of each such file once, where the batch is taken.
    """

    def __init__(
        self,
        run: Run,
        order: Order,
        fields: Sequence[Field],
        cache: Cache | None,
        on_unreadable: Callable[[Source, str], None] | None = None,
    ) -> None:
        self.run = run
        self.order = order
        self.fields = tuple(fields)
        self.cache = cache
        self.on_unreadable = on_unreadable
        self.unreadable: dict[Path, str] = {}
        self._untold: deque[tuple[Source, str]] = deque()
        self._contents: dict[Path, str] = {}
        self._recent: dict[str, Tensor] = {}
        self._recent_bytes = 0

    def batch(self, position: int) -> Batch:
        """The batch at a position of the run, with all fields: on the CPU from the cache, else on the run's device."""
        return self._finished(self._prepared(position))

    @contextmanager
    def batches(self, start: int) -> Iterator[Ahead]:
        """The batches from a position on, without end, on the run's device; a thread that ends with the block reads ahead."""
        ahead = Ahead(self, start)
        try:
            yield ahead
        finally:
            ahead.close()

    def ready(self, position: int) -> Batch:
        """What a thread can do for the batch at a position: read all fields, or decode pixels; pinned for a GPU."""
        batch = self._prepared(position)
        return _pinned(batch) if self.run.device.type == "cuda" else batch

    def finished(self, batch: Batch) -> Batch:
        """The rest, which is the main thread's: all fields of a batch that is ready, on the run's device."""
        return self._finished(batch).to(self.run.device)

    def _prepared(self, position: int) -> Batch:
        """What the reading thread can do: read all fields, or decode the pixels that they are computed from."""
        if self.cache is not None:
            return self._read(self.cache, self.order.batch(position))
        chosen = [self._decoded(draw) for draw in self.order.draws(position)]
        return batch_of([source for source, _ in chosen], [pixels for _, pixels in chosen], [field.key for field in self.fields])

    def _finished(self, batch: Batch) -> Batch:
        """What is left for the main thread: telling of unreadable files and encoding, where there is no cache."""
        if self.cache is not None:
            return batch
        while self._untold:
            source, reason = self._untold.popleft()
            if self.on_unreadable is not None:
                self.on_unreadable(source, reason)
        return encode(self.run, batch)

    def _read(self, cache: Cache, sources: Sequence[Source]) -> Batch:
        keys = {field.key: [self._key(field, source) for source in sources] for field in self.fields}
        what = {key: str(source) for of_field in keys.values() for key, source in zip(of_field, sources, strict=True)}
        values = self._stored(cache, what)
        fields = {field.key: collate(field, [values[key] for key in keys[field.key]]) for field in self.fields}
        return Batch(tuple(sources), tuple(source.caption for source in sources), fields=fields)

    def _stored(self, cache: Cache, wanted: Mapping[str, str]) -> dict[str, Tensor]:
        """Values of the cache by key, copies of those that are in memory."""
        values = {key: self._recent[key].clone() for key in wanted if key in self._recent}
        if len(values) < len(wanted):
            read = stored(cache, {key: what for key, what in wanted.items() if key not in values})
            for key, value in read.items():
                size = value.numel() * value.element_size()
                if self._recent_bytes + size <= RECENT_BYTES:
                    self._recent[key] = value.clone()
                    self._recent_bytes += size
            values |= read
        return values

    def _key(self, field: Field, source: Source) -> str:
        if not field.per_sample:
            return caption_key(field, source.caption)
        if source.file not in self._contents:
            try:
                self._contents[source.file] = self.run.file_hashes.of(source.file)
            except OSError as error:
                raise RunFailed(f"{source} cannot be read any more ({error.strerror}); put it back, or start again without it") from error
        return key_of(self.run, field, source, self._contents[source.file])

    def _decoded(self, draw: Draw) -> tuple[Source, Tensor]:
        """A drawn sample and its pixels; those of the next readable one of its bucket if its file cannot be decoded."""
        for one in itertools.chain([draw], self.order.neighbours(draw)):
            source = self.order.source(one)
            if source.file in self.unreadable:
                continue
            try:
                return source, load_pixels(source)
            except Unreadable as error:
                self.unreadable[source.file] = error.reason
                self._untold.append((source, error.reason))
        width, height, _ = draw.bucket
        raise RunFailed(f"dataset {draw.dataset.name!r}: no picture of the bucket {width}x{height} can be decoded; {self._examples()}")

    def _examples(self) -> str:
        return "; ".join(f"{file}: {reason}" for file, reason in itertools.islice(self.unreadable.items(), 3))


class Ahead(Iterator[Batch]):
    """The batches of a loader from a position on, some of them read ahead by a thread until `close`.

    What goes wrong in the thread is raised where the batch is taken.
    """

    def __init__(self, loader: Loader, start: int) -> None:
        self.loader = loader
        self._ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[bool] = queue.SimpleQueue()  # a place for a batch each; False ends the thread
        self._owes_room = False
        self._closed = False
        for _ in range(AHEAD):
            self._room.put(True)
        self._thread = threading.Thread(target=self._read, args=(start,), name="loader", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        self.read_on()
        item = self._ready.get()
        self._owes_room = True
        if isinstance(item, BaseException):
            raise item
        return self.loader.finished(item)

    def read_on(self) -> None:
        """Let the thread read the batch that takes the place of the last one taken; taking the next one does it too.

        Two threads that run Python slow each other down, so this is for where the caller leaves Python for a while.
        """
        if self._owes_room:
            self._owes_room = False
            self._room.put(True)

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._room.put(False)
        self._thread.join()

    def _read(self, start: int) -> None:
        for position in itertools.count(start):
            if not self._room.get() or self._closed:
                return
            try:
                self._ready.put(self.loader.ready(position))
            except BaseException as error:  # raised again by whoever takes the batch
                self._ready.put(error)
                return


def _pinned(batch: Batch) -> Batch:
    """The batch in memory from which it is copied to a GPU without waiting."""

    def pin(value: FieldValue) -> FieldValue:
        return Ragged([one.pin_memory() for one in value.values]) if isinstance(value, Ragged) else value.pin_memory()

    pixels = None if batch.pixels is None else batch.pixels.pin_memory()
    return Batch(batch.sources, batch.captions, pixels, {key: pin(value) for key, value in batch.fields.items()}, batch.wanted)

"""Batches of a run by position."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from ..batch import Batch, Caption, Crop, Field, FieldValue, Ragged, Source, Window
from ..errors import RunFailed
from ..kinds import Unreadable
from .ahead import Ahead
from .cache import Cache, caption_key
from .encode import batch_of, collate, encode, key_of, needs_of, stored
from .order import Draw, Order

if TYPE_CHECKING:
    from ..run import Run

LOT, LOT_OF_PIXELS = 8, 1
"""Batches that the thread reads at a stretch: from the cache, and where it decodes."""
RECENT_BYTES = 16 * 2**20
"""Bytes of cache entries that stay in memory once read: all of a small dataset."""


_Part: TypeAlias = tuple[str, Caption | tuple[Path, Crop, Window | None]]
"""A field and what its value belongs to: a caption, or a part of a file."""


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
        self._recent: dict[_Part, Tensor] = {}
        self._recent_bytes = 0

    def batch(self, position: int) -> Batch:
        """The batch at a position of the run, with all fields: on the CPU from the cache, else on the run's device."""
        return self._finished(self._prepared(position))

    @property
    def lot(self) -> int:
        """How many batches should be made ready at a stretch."""
        return LOT_OF_PIXELS if self.cache is None else LOT

    def batches(self, start: int) -> Ahead[Batch, Batch]:
        """The batches from a position on, without end, on the run's device; a thread reads ahead until it is closed."""
        return Ahead(self.ready, self.finished, start, self.lot)

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
        return batch_of([source for source, _ in chosen], [inputs for _, inputs in chosen], [field.key for field in self.fields])

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
        values = self._values(cache, sources)
        fields = {field.key: collate(field, [values[_part(field, source)] for source in sources]) for field in self.fields}
        return Batch(tuple(sources), tuple(source.caption for source in sources), fields=fields)

    def _values(self, cache: Cache, sources: Sequence[Source]) -> dict[_Part, Tensor]:
        """The values of all fields of some sources, copies of those that are in memory."""
        values: dict[_Part, Tensor] = {}
        lacking: dict[_Part, tuple[str, Source]] = {}
        for field in self.fields:
            for source in sources:
                part = _part(field, source)
                if part in self._recent:
                    values[part] = self._recent[part].clone()
                else:
                    lacking[part] = (self._key(field, source), source)
        if lacking:
            read = stored(cache, {key: str(source) for key, source in lacking.values()})
            for part, (key, _) in lacking.items():
                values[part] = self._kept(part, read[key])
        return values

    def _kept(self, part: _Part, value: Tensor) -> Tensor:
        """The value, of which a copy stays in memory if there is room."""
        size = value.numel() * value.element_size()
        if self._recent_bytes + size <= RECENT_BYTES:
            self._recent[part] = value.clone()
            self._recent_bytes += size
        return value

    def _key(self, field: Field, source: Source) -> str:
        if not field.per_sample:
            return caption_key(field, source.caption)
        if source.file not in self._contents:
            try:
                self._contents[source.file] = self.run.file_hashes.of(source.file)
            except OSError as error:
                raise RunFailed(f"{source} cannot be read any more ({error.strerror}); put it back, or start again without it") from error
        return key_of(self.run, self.order.datasets[source.dataset], field, source, self._contents[source.file])

    def _decoded(self, draw: Draw) -> tuple[Source, dict[str, Tensor]]:
        """A drawn sample and its inputs; those of the next readable one of its bucket if its file cannot be decoded."""
        for one in itertools.chain([draw], self.order.neighbours(draw)):
            source = self.order.source(one)
            if source.file in self.unreadable:
                continue
            try:
                return source, {need: draw.dataset.load(source, need) for need in needs_of(self.fields)}
            except Unreadable as error:
                self.unreadable[source.file] = error.reason
                self._untold.append((source, error.reason))
        width, height, _ = draw.bucket
        raise RunFailed(f"dataset {draw.dataset.name!r}: no sample of the bucket {width}x{height} can be decoded; {self._examples()}")

    def _examples(self) -> str:
        return "; ".join(f"{file}: {reason}" for file, reason in itertools.islice(self.unreadable.items(), 3))


def _part(field: Field, source: Source) -> _Part:
    return field.key, (source.file, source.crop, source.window) if field.per_sample else source.caption


def _pinned(batch: Batch) -> Batch:
    """The batch in memory from which it is copied to a GPU without waiting."""

    def pin(value: FieldValue) -> FieldValue:
        return Ragged([one.pin_memory() for one in value.values]) if isinstance(value, Ragged) else value.pin_memory()

    inputs = {key: value.pin_memory() for key, value in batch.inputs.items()}
    return Batch(batch.sources, batch.captions, inputs, {key: pin(value) for key, value in batch.fields.items()}, batch.wanted)

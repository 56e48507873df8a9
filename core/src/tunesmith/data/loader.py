"""Batches of a run by position."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..batch import Batch, Field, FieldValue, Ragged, Source
from ..cache.store import Store, caption_key
from ..encoding.encode import batch_of, collate, encode, key_of, needs_of
from ..encoding.repair import Part, Repairs, TornBatch, part_of
from ..errors import RunFailed
from ..kinds import Unreadable
from .ahead import Ahead
from .order import Draw, Order

if TYPE_CHECKING:
    from ..run import Run

LOT, LOT_OF_PIXELS = 8, 1
"""Batches that the thread reads at a stretch: from the cache, and where it decodes."""
QUICK_EPOCHS, MOST_QUICK = 4, 64
"""Epochs, and batches, that are made ready at a stretch where all is in memory, of which an epoch then takes little."""
RECENT_BYTES = 16 * 2**20
"""Bytes of cache entries that stay in memory once read: all of a small dataset."""
KNOWN_FILES = 100_000
"""Files whose hashes stay in memory once needed; those of others are looked up again."""


class Loader:
    """The batches of an order with all their fields: from the cache, or decoded and encoded when they are due.

    What the cache has lost since it was filled is made again when it is due. Without a cache a file that cannot be
    decoded is replaced by the next of its bucket, so that a batch stays a function of its position; `on_unreadable` is
    told of each such file once, where the batch is taken.
    """

    def __init__(
        self,
        run: Run,
        order: Order,
        fields: Sequence[Field],
        cache: Store | None,
        on_unreadable: Callable[[Source, str], None] | None = None,
    ) -> None:
        self.run = run
        self.order = order
        self._fields = tuple(fields)
        self._some_end = any(field.is_needed is not None for field in self._fields)
        self.cache = cache
        self.on_unreadable = on_unreadable
        self.unreadable: dict[Path, str] = {}
        self._untold: deque[tuple[Source, str]] = deque()
        self._contents: dict[Path, str] = {}
        self._repairs = None if cache is None else Repairs(run, order, self._fields, cache)
        self._recent: dict[Part, Tensor] = {}
        self._recent_bytes = 0
        self._quick_batches, self._epoch = 0, order.batches_per_epoch

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields that batches have from here on."""
        if not self._some_end:
            return self._fields
        return tuple(field for field in self._fields if field.is_needed is None or field.is_needed())

    def batch(self, position: int) -> Batch:
        """The batch at a position of the run, with all fields: on the CPU from the cache, else on the run's device."""
        return self._finished(self._prepared(position))

    @property
    def lot(self) -> int:
        """How many batches should be made ready at a stretch."""
        return LOT_OF_PIXELS if self.cache is None else LOT

    def quick(self) -> int:
        """How many batches can be made ready without waiting: some epochs of them once every value of one was in memory, else 0."""
        return min(max(QUICK_EPOCHS * self._epoch, LOT), MOST_QUICK) if self._quick_batches >= self._epoch else 0

    def batches(self, start: int) -> Ahead[Batch, Batch]:
        """The batches from a position on, without end, on the run's device; a thread reads ahead until it is closed."""
        return Ahead(self.ready, self.finished, start, self.lot, self.quick)

    def ready(self, position: int) -> Batch:
        """What a thread can do for the batch at a position: read all fields, or decode pixels; pinned for a GPU."""
        batch = self._prepared(position)
        return _pinned(batch) if self.run.device.type == "cuda" and not batch.wanted else batch

    def finished(self, batch: Batch) -> Batch:
        """The rest, which is the main thread's: all fields of a batch that is ready, on the run's device."""
        whole = self._finished(batch)
        return whole if self.run.device.type == "cpu" else whole.to(self.run.device)

    def _prepared(self, position: int) -> Batch:
        """What the reading thread can do: read all fields, or decode the pixels that they are computed from."""
        if self.cache is not None:
            return self._read(self.cache, self.order.batch(position))
        chosen = [self._decoded(draw) for draw in self.order.draws(position)]
        return batch_of([source for source, _ in chosen], [inputs for _, inputs in chosen], [field.key for field in self.fields])

    def _finished(self, batch: Batch) -> Batch:
        """What is left for the main thread: encoding, and telling of unreadable files, where there is no cache."""
        if self._repairs is not None:
            return self._whole(batch.sources, self._repairs.values_of(batch)) if isinstance(batch, TornBatch) else batch
        while self._untold:
            source, reason = self._untold.popleft()
            if self.on_unreadable is not None:
                self.on_unreadable(source, reason)
        return encode(self.run, batch)

    def _read(self, cache: Store, sources: Sequence[Source]) -> Batch:
        """A batch from memory or the cache; torn, with inputs decoded, if entries are damaged or gone."""
        remembered = {field.key: self._remembered(field, sources) for field in self.fields}
        fields = {key: value for key, value in remembered.items() if value is not None}
        self._quick_batches = self._quick_batches + 1 if len(fields) == len(remembered) else 0
        if self._quick_batches:
            return Batch(tuple(sources), tuple(source.caption for source in sources), fields=fields)
        values: dict[Part, Tensor] = {}
        lacking: dict[Part, tuple[str, Source]] = {}
        for field in self.fields:
            for source in sources:
                part = part_of(field, source)
                if part in self._recent:
                    values[part] = self._recent[part].clone()
                else:
                    lacking[part] = (self._key(field, source), source)
        read = cache.get_many(key for key, _ in lacking.values()) if lacking else {}
        for part, (key, _) in lacking.items():
            if key in read:
                values[part] = self._kept(part, read[key])
        lost = {part: place for part, place in lacking.items() if part not in values}
        if lost and self._repairs is not None:
            return self._repairs.torn(sources, values, lost)
        return self._whole(sources, values)

    def _remembered(self, field: Field, sources: Sequence[Source]) -> FieldValue | None:
        """A field of a batch, of which nothing is shared with what stays in memory; None if a value is not there."""
        found = [value for source in sources if (value := self._recent.get(part_of(field, source))) is not None]
        if len(found) < len(sources):
            return None
        return collate(field, [value.clone() for value in found] if field.ragged else found)  # a stack is a copy

    def _whole(self, sources: Sequence[Source], values: Mapping[Part, Tensor]) -> Batch:
        fields = {field.key: collate(field, [values[part_of(field, source)] for source in sources]) for field in self.fields}
        return Batch(tuple(sources), tuple(source.caption for source in sources), fields=fields)

    def _kept(self, part: Part, value: Tensor) -> Tensor:
        """The value, of which a copy stays in memory if there is room."""
        size = value.numel() * value.element_size()
        if self._recent_bytes + size <= RECENT_BYTES:
            self._recent[part] = value.clone()
            self._recent_bytes += size
        return value

    def _key(self, field: Field, source: Source) -> str:
        if not field.per_sample:
            return caption_key(field, source.caption)
        return key_of(self.order.datasets[source.dataset], field, source, self._content)

    def _content(self, file: Path) -> str:
        """The hash of a file, which may be gone once it is known."""
        if file in self._contents:
            return self._contents[file]
        try:
            content = self.run.file_hashes.of(file)
        except OSError as error:
            raise RunFailed(f"{file} cannot be read any more ({error.strerror}); put it back, or start again without it") from error
        if len(self._contents) < KNOWN_FILES:
            self._contents[file] = content
        return content

    def _decoded(self, draw: Draw) -> tuple[Source, dict[str, Tensor]]:
        """A drawn sample and its inputs; those of the next readable one of its bucket if its file cannot be decoded."""
        for one in itertools.chain([draw], self.order.neighbours(draw)):
            source = self.order.source(one)
            if source.file in self.unreadable:
                continue
            try:
                return source, {need: draw.dataset.load(source, need) for need in needs_of(self.fields, draw.dataset)}
            except Unreadable as error:
                self.unreadable[source.file] = error.reason
                self._untold.append((source, error.reason))
        width, height, _ = draw.bucket
        raise RunFailed(f"dataset {draw.dataset.name!r}: no sample of the bucket {width}x{height} can be decoded; {self._examples()}")

    def _examples(self) -> str:
        return "; ".join(f"{file}: {reason}" for file, reason in itertools.islice(self.unreadable.items(), 3))


def _pinned(batch: Batch) -> Batch:
    """The batch in memory from which it is copied to a GPU without waiting."""

    def pin(value: FieldValue) -> FieldValue:
        return Ragged([one.pin_memory() for one in value.values]) if isinstance(value, Ragged) else value.pin_memory()

    inputs = {key: value.pin_memory() for key, value in batch.inputs.items()}
    return Batch(batch.sources, batch.captions, inputs, {key: pin(value) for key, value in batch.fields.items()}, batch.wanted)

"""Encoding around the cache: only what is missing is decoded and computed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from ..batch import Batch, Caption, Field, FieldValue, Ragged, Source
from ..errors import RunFailed
from ..kinds import Unreadable
from .cache import Cache, caption_key, sample_key
from .dataset import Dataset
from .order import Order

if TYPE_CHECKING:
    from ..run import Run

DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode pictures."""
T = TypeVar("T")
Inputs: TypeAlias = dict[str, Tensor]
AHEAD = 2
"""Batches whose pictures are being decoded while one is encoded."""


class Bar(Protocol):
    """Shows how far a stage is."""

    def advance(self, count: int) -> None:
        """So many more are done."""


class Stages(Protocol):
    """Shows stages, one after the other."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Bar]:
        """Begin a stage of `total` things."""


@dataclass(frozen=True)
class _Todo:
    """A source and the keys, by field, of what the cache lacks of it."""

    source: Source
    lacks: Mapping[str, str]


def fill(run: Run, cache: Cache, fields: Sequence[Field], order: Order, captions: Iterable[Caption], progress: Stages) -> None:
    """Bring the cache to hold every field of every source of the order and of every caption.

    A file that cannot be read is dropped from its dataset, which counts and names it. Raises InputError if a dataset has
    no whole batch left, RunFailed if an encoder's result is not finite.
    """
    try:
        _fill_captions(run, cache, [field for field in fields if not field.per_sample], captions, progress)
        _fill_samples(run, cache, [field for field in fields if field.per_sample], order, progress)
    finally:
        cache.flush()
    order.require_batches()


def read_caption_fields(run: Run, cache: Cache | None, fields: Sequence[Field], caption: Caption) -> dict[str, FieldValue]:
    """The fields of one caption for a batch of one, on the CPU; encoded now if there is no cache."""
    wanted = [field for field in fields if not field.per_sample]
    if cache is None:
        encoded = encode(run, Batch(captions=(caption,), wanted=frozenset(field.key for field in wanted))).to(torch.device("cpu"))
        return {field.key: encoded.fields[field.key] for field in wanted}
    keys = {field.key: caption_key(field, caption) for field in wanted}
    values = stored(cache, dict.fromkeys(keys.values(), repr(caption.text)))
    return {field.key: collate(field, [values[keys[field.key]]]) for field in wanted}


def needs_of(fields: Iterable[Field]) -> tuple[str, ...]:
    """The inputs that these fields are made of, once each."""
    return tuple(dict.fromkeys(need for field in fields if field.per_sample for need in field.needs))


def batch_of(sources: Sequence[Source], inputs: Sequence[Mapping[str, Tensor]], wanted: Iterable[str]) -> Batch:
    """A batch of sources whose inputs were decoded."""
    stacked = {need: torch.stack([of_source[need] for of_source in inputs]) for need in inputs[0]}
    return Batch(tuple(sources), tuple(source.caption for source in sources), stacked, wanted=frozenset(wanted))


def encode(run: Run, batch: Batch) -> Batch:
    """What the chain of encoders makes of the batch, on the run's device."""
    with torch.no_grad():
        return run.hooks.encode_batch(run, batch.to(run.device))


def collate(field: Field, values: Sequence[Tensor]) -> FieldValue:
    """One field of a batch from the values of its samples."""
    return Ragged(values) if field.ragged else torch.stack(list(values))


def stored(cache: Cache, wanted: Mapping[str, str]) -> dict[str, Tensor]:
    """Values that the cache was filled with, by key; `wanted` says of what each is. RunFailed if one is gone since."""
    values = cache.get_many(wanted)
    for key, what in wanted.items():
        if key not in values:
            raise RunFailed(f"the cache in {cache.folder} no longer holds what was encoded of {what}; start again, and it is encoded anew")
    return values


def _fill_captions(run: Run, cache: Cache, fields: Sequence[Field], captions: Iterable[Caption], progress: Stages) -> None:
    keys = {caption: {field.key: caption_key(field, caption) for field in fields} for caption in captions}
    there = cache.sound_many(key for of_caption in keys.values() for key in of_caption.values())
    groups: dict[frozenset[str], list[Caption]] = {}
    for caption, of_caption in keys.items():
        lacks = frozenset(field for field, key in of_caption.items() if key not in there)
        if lacks:
            groups.setdefault(lacks, []).append(caption)
    if not groups:
        return
    with progress.stage("encoding captions", sum(map(len, groups.values()))) as bar:
        for lacks, group in groups.items():
            for some in _portions(group, run.config.run.batch_size):
                encoded = encode(run, Batch(captions=tuple(some), wanted=lacks))
                for field in fields:
                    if field.key in lacks:
                        values = _values(field, encoded, [f"caption {caption.text!r}" for caption in some])
                        cache.put_many({keys[caption][field.key]: value for caption, value in zip(some, values, strict=True)})
                bar.advance(len(some))


def _fill_samples(run: Run, cache: Cache, fields: Sequence[Field], order: Order, progress: Stages) -> None:
    portions = _missing(run, cache, fields, order, progress)
    if not portions:
        return
    with progress.stage("encoding samples", sum(map(len, portions))) as bar, ThreadPoolExecutor(DECODERS) as pool:
        for todos, decoded in _decoded_ahead(pool, order, fields, portions):
            good: list[_Todo] = []
            inputs: list[dict[str, Tensor]] = []
            for todo, of_source in zip(todos, decoded, strict=True):
                if isinstance(of_source, Unreadable):
                    order.drop(todo.source, of_source.reason)
                else:
                    good.append(todo)
                    inputs.append(of_source)
            if good:
                _encode_samples(run, cache, fields, good, inputs)
            bar.advance(len(todos))


def _encode_samples(
    run: Run, cache: Cache, fields: Sequence[Field], todos: Sequence[_Todo], inputs: Sequence[Mapping[str, Tensor]]
) -> None:
    lacks = todos[0].lacks.keys()
    encoded = encode(run, batch_of([todo.source for todo in todos], inputs, lacks))
    for field in fields:
        if field.key in lacks:
            values = _values(field, encoded, [str(todo.source) for todo in todos])
            cache.put_many({todo.lacks[field.key]: value for todo, value in zip(todos, values, strict=True)})


def _missing(run: Run, cache: Cache, fields: Sequence[Field], order: Order, progress: Stages) -> list[list[_Todo]]:
    """What the cache lacks, in portions that can be one batch: of one size and lacking the same fields."""
    sources = list(order.all_sources())
    keys: list[dict[str, str]] = []
    with progress.stage("hashing files", len(sources)) as bar, ThreadPoolExecutor(DECODERS) as pool:
        for source, content in zip(sources, pool.map(lambda source: _content(run, source), sources), strict=True):
            keys.append(
                {}
                if content is None
                else {field.key: key_of(run, order.datasets[source.dataset], field, source, content) for field in fields}
            )
            if content is None:
                order.drop(source, "cannot be read")
            bar.advance(1)
    there = cache.sound_many(key for of_source in keys for key in of_source.values())
    groups: dict[tuple[object, ...], list[_Todo]] = {}
    for source, of_source in zip(sources, keys, strict=True):
        lacks = {field: key for field, key in of_source.items() if key not in there}
        if lacks:
            groups.setdefault((*_shape(source), frozenset(lacks)), []).append(_Todo(source, lacks))
    return [portion for group in groups.values() for portion in _portions(group, run.config.run.batch_size)]


def key_of(run: Run, dataset: Dataset, field: Field, source: Source, content: str) -> str:
    """The key of a sample's field, from the hash of its file and of the files that come with it."""
    further = [file for need in field.needs for file in dataset.files(source, need)]
    if field.companions is not None:
        further += field.companions(source)
    recipe = " ".join(dataset.recipe(need) for need in field.needs)
    return sample_key(field, recipe, " ".join([content, *map(run.file_hashes.of, further)]), source.crop, source.window)


def _shape(source: Source) -> tuple[object, ...]:
    """What sources have in common that can be one batch, whatever their datasets."""
    window = source.window
    return (source.dataset, source.crop.size, None if window is None else (window.frames, window.fps))


def _content(run: Run, source: Source) -> str | None:
    try:
        return run.file_hashes.of(source.file)
    except OSError:
        return None


def _decoded_ahead(
    pool: ThreadPoolExecutor, order: Order, fields: Sequence[Field], portions: Sequence[list[_Todo]]
) -> Iterator[tuple[list[_Todo], list[Inputs | Unreadable]]]:
    """The portions with their inputs, a few of them being decoded ahead."""
    waiting: deque[tuple[list[_Todo], list[Future[Inputs | Unreadable]]]] = deque()
    for portion in portions:
        needs = needs_of(field for field in fields if field.key in portion[0].lacks)
        waiting.append((portion, [pool.submit(_inputs, order.datasets[todo.source.dataset], todo.source, needs) for todo in portion]))
        if len(waiting) > AHEAD:
            todos, futures = waiting.popleft()
            yield todos, [future.result() for future in futures]
    for todos, futures in waiting:
        yield todos, [future.result() for future in futures]


def _inputs(dataset: Dataset, source: Source, needs: Iterable[str]) -> Inputs | Unreadable:
    try:
        return {need: dataset.load(source, need) for need in needs}
    except Unreadable as error:
        return error


def _values(field: Field, batch: Batch, names: Sequence[str]) -> list[Tensor]:
    """A field's value for each sample, on the CPU; RunFailed if one is not finite."""
    value = batch.ragged(field.key).values if field.ragged else batch.tensor(field.key)
    if len(value) != len(names):
        raise RuntimeError(f"encode_batch made {len(value)} values of field {field.key!r} for {len(names)} samples")
    values = [one.detach().cpu().contiguous() for one in value]
    for one, name in zip(values, names, strict=True):
        if one.is_floating_point() and not torch.isfinite(one).all():
            raise RunFailed(
                f"{field.key!r} of {name} is not finite, and it was not stored: the encoder overflows in its precision, "
                "or the input is damaged; use bf16 or fp32 for the encoder, or take the file out"
            )
    return values


def _portions(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])

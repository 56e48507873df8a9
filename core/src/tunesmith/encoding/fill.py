"""Filling the cache: only what is missing is decoded and computed, and by one of several processes only."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from dataclasses import field as attribute
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from ..batch import Caption, Field, Source
from ..cache.store import Store
from ..data.order import Order
from ..kinds import Unreadable
from .encode import Inputs, encode, named, values_of
from .pipeline import DECODERS, Background, decoded_ahead, in_background
from .watch import Watch
from .work import CaptionWork, Job, SampleWork, Work, chunks

if TYPE_CHECKING:
    from ..run import Run

T = TypeVar("T", bound=Source | Caption)
_Group: TypeAlias = tuple[tuple[object, ...], frozenset[str]]
"""What things have in common that can be one batch: their shape, and the fields that they lack."""
POLL_SECONDS = 0.2
"""Time between two looks at what other processes are encoding."""
WATCHED_KEYS = 1000
"""Keys of other processes that are waited for before everything left is looked at again."""


class Bar(Protocol):
    """Shows how far a stage is."""

    def advance(self, count: int) -> None:
        """So many more are done."""


class Stages(Protocol):
    """Shows stages, one after the other, and messages."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Bar]:
        """Begin a stage of `total` things."""

    def message(self, text: str) -> None:
        """Tell something on the way."""


def fill(
    run: Run, cache: Store, fields: Iterable[Field], order: Order, captions: Iterable[Caption], progress: Stages, user: str = ""
) -> None:
    """Bring the cache to hold every field of every source of the order and of every caption.

    What another process is encoding for the same cache is waited for, and taken over if that process dies. The cache
    remembers that `user` uses what is there now. A file that cannot be read is dropped from its dataset, which counts
    and names it. Raises InputError if a dataset has no whole batch left, RunFailed if an encoder's result is not finite.
    """
    fields = tuple(fields)
    per_sample, per_caption = [field for field in fields if field.per_sample], [field for field in fields if not field.per_sample]
    watch = Watch(progress.message)
    samples = SampleWork(run, per_sample, order, watch)
    try:
        with watch.running(), ThreadPoolExecutor(DECODERS, "decoder") as decoders:
            parts = _Filling(run, cache, CaptionWork(per_caption, captions), progress, watch, decoders, user, 0).complete()
            parts = _Filling(run, cache, samples, progress, watch, decoders, user, parts).complete()
            if user:
                cache.end_use(user, parts)
    finally:
        cache.flush()
        cache.release()
    for source, reason in samples.lost.values():
        order.drop(source, reason)
    order.require_batches()


@dataclass
class _Filling(Generic[T]):
    """The filling with one kind of things: first all are looked at, in chunks, then what is missing is made.

    Things are known by their positions, so that millions of them need little memory.
    """

    run: Run
    cache: Store
    work: Work[T]
    progress: Stages
    watch: Watch
    decoders: ThreadPoolExecutor
    user: str
    part: int
    left: array[int] = attribute(default_factory=lambda: array("q"))
    others: list[str] = attribute(default_factory=list)

    def complete(self) -> int:
        """Make everything that is missing; the number of the next part of the user's keys."""
        missing = self.missing()
        if missing:
            with self.progress.stage(f"encoding {self.work.what}", len(missing)) as bar:
                while missing:
                    missing = self.make(missing, bar)
        return self.part

    def missing(self) -> array[int]:
        """The positions of what the cache lacks."""
        lacking = array("q")
        with self.work.looking(self.progress) as looked_at:
            for chunk in chunks(enumerate(self.work.items())):
                keys = self.work.keys([item for _, item in chunk], self.decoders, looked_at)
                all_keys = [key for of_item in keys for key in of_item.values()]
                there = self.cache.sound_many(all_keys)
                if self.user:
                    self.cache.use(self.user, self.part, all_keys)
                self.part += 1
                lacking.extend(position for (position, _), own in zip(chunk, keys, strict=True) if not there.issuperset(own.values()))
        return lacking

    def make(self, missing: array[int], bar: Bar) -> array[int]:
        """Make what is missing and nobody else is making; the positions of what remains, once others are done with it."""
        self.left, self.others = array("q"), []
        with in_background() as writing:
            for jobs, inputs in decoded_ahead(self.decoders, self.batches(missing, bar), self.work, self.watch):
                self.encode(jobs, inputs, writing)
                bar.advance(sum(job.is_whole for job in jobs))
        self.watch.at(None)
        self.cache.flush()
        self.cache.release()
        self.wait_for_others()
        return self.left

    def encode(self, jobs: Sequence[Job[T]], inputs: Sequence[Inputs | Unreadable], writing: Background) -> None:
        """Make and store what a batch lacks, as far as its inputs could be decoded."""
        good: list[Job[T]] = []
        decoded: list[Inputs] = []
        for job, of_job in zip(jobs, inputs, strict=True):
            if isinstance(of_job, Unreadable):
                self.work.lose(job.item, of_job.reason)
            else:
                good.append(job)
                decoded.append(of_job)
        if not good:
            return
        names, lacks = [named(job.item) for job in good], jobs[0].lacks.keys()
        self.watch.at(partial("encoding {}".format, names[0]))
        encoded = encode(self.run, self.work.batch([job.item for job in good], decoded, lacks))
        for field in self.work.fields:
            if field.key in lacks:
                values = values_of(field, encoded, names)
                own = {job.lacks[field.key]: value for job, value in zip(good, values, strict=True)}
                writing.submit(self.cache.put_many, own, field.key)

    def batches(self, missing: array[int], bar: Bar) -> Iterator[list[Job[T]]]:
        """What this process is to make of what is missing, in batches: of one shape and lacking the same fields."""
        size = self.run.config.run.batch_size
        found: dict[_Group, list[Job[T]]] = {}
        claimed: dict[_Group, list[Job[T]]] = {}
        for chunk in chunks(_at(self.work.items(), missing)):
            keys = self.work.keys([item for _, item in chunk], self.decoders)
            there = self.cache.contains_many(key for of_item in keys for key in of_item.values())
            for (position, item), of_item in zip(chunk, keys, strict=True):
                lacks = {field: key for field, key in of_item.items() if key not in there}
                if not lacks:
                    bar.advance(1)
                    continue
                group = (self.work.shape(item), frozenset(lacks))
                found.setdefault(group, []).append(Job(position, item, lacks))
                if len(found[group]) + len(claimed.get(group, ())) >= size:
                    yield from self.claim(group, found.pop(group), claimed, size)
        for group, jobs in found.items():
            yield from self.claim(group, jobs, claimed, size)
        yield from claimed.values()

    def claim(self, group: _Group, jobs: list[Job[T]], claimed: dict[_Group, list[Job[T]]], size: int) -> Iterator[list[Job[T]]]:
        """Claim what these jobs lack, and give out what is a whole batch by that; what others are making is noted as left."""
        mine = self.cache.claim_many(key for job in jobs for key in job.lacks.values())
        for job in jobs:
            own = {field: key for field, key in job.lacks.items() if key in mine}
            mine.difference_update(own.values())  # of two with the same content the second finds it made
            if len(own) < len(job.lacks):
                self.left.append(job.position)
                self.others = [*self.others, *(key for key in job.lacks.values() if key not in own.values())][-WATCHED_KEYS:]
            if own:
                group = (group[0], frozenset(own))
                claimed.setdefault(group, []).append(Job(job.position, job.item, own, len(own) == len(job.lacks)))
                if len(claimed[group]) == size:
                    yield claimed.pop(group)

    def wait_for_others(self) -> None:
        """Wait as long as other processes are at work on what was left to them last."""
        told = False
        while (who := self.cache.others_at(self.others)) is not None:
            if not told:
                self.progress.message(f"waiting for {who}, which is encoding {self.work.what} for the same cache")
                told = True
            time.sleep(POLL_SECONDS)


def _at(items: Iterable[T], positions: array[int]) -> Iterator[tuple[int, T]]:
    """The items at these positions, which go up."""
    wanted = iter(sorted(positions))
    next_one = next(wanted, None)
    for position, item in enumerate(items):
        if position == next_one:
            yield position, item
            next_one = next(wanted, None)
        if next_one is None:
            return

"""Which samples make up which batch of a run: a pure function of the batch's position."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..batch import Caption, Crop, Source, Window
from ..errors import InputError
from ..randomness import numpy_generator
from .dataset import Bucket, Dataset, Sample
from .segments import Lane, Segment, segments_of

UNCONDITIONAL = Caption("", negative=True)
"""What a dropped caption becomes: the text that guidance steers away from when a sampler is given no negative prompt."""
KNOWN_SOURCES = 10_000
"""Samples whose files and parts stay at hand once drawn; those of others are put together again."""
Entries = NDArray[np.int64]
"""Draws of samples: sample index * rounds + repeat, [batches, batch size]."""


@dataclass(frozen=True)
class _Group:
    """The samples of one bucket of one dataset, the size and number of its batches, and how often a sample may come in an epoch."""

    dataset: Dataset
    bucket: Bucket
    indexes: NDArray[np.int64]
    batch_size: int
    batches: int
    rounds: int


@dataclass(frozen=True)
class _Share:
    """The groups of one dataset, the numbers at which the batches of each end, and how many batches there are."""

    dataset: Dataset
    groups: tuple[_Group, ...]
    ends: NDArray[np.int64]
    batches: int


@dataclass(frozen=True)
class Draw:
    """One sample as one epoch of its dataset sees it for the `repeat`-th time."""

    dataset: Dataset
    bucket: Bucket
    index: int
    epoch: int
    repeat: int


class Order:
    """The batches of a run, each from one dataset and one bucket, in an order that the seed and the epoch decide.

    In each epoch the samples of a bucket, each as often as it repeats, are shuffled and cut into whole batches; what is
    left over is another remainder each epoch. Then the batches of all datasets are shuffled together.

    With weights every dataset has its share of the batches, and goes through epochs of its own, in which it sees each
    sample equally often. Where datasets come or go at a step, which is `accumulation` positions long, all of those that
    are there begin an epoch.

    `cached` says that crops and their number are fixed beforehand; otherwise each epoch draws its own. Only the order of
    one epoch of each dataset is in memory.
    """

    def __init__(self, datasets: Sequence[Dataset], seed: int, *, cached: bool, accumulation: int = 1) -> None:
        names = [dataset.name for dataset in datasets]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{names.count(name)} datasets are named {name!r}; give each `[[datasets]]` table its own `name`")
        self.datasets = {dataset.name: dataset for dataset in datasets}
        self.seed = seed
        self.cached = cached
        self.accumulation = accumulation
        self._forget()

    @property
    def batches_per_epoch(self) -> int:
        """How many batches all datasets together have in an epoch."""
        return sum(share.batches for share in self._shares())

    def drop(self, source: Source, reason: str) -> bool:
        """Leave out a file that cannot be read, and order the rest anew when next asked; False if it is out already."""
        dropped = self.datasets[source.dataset].drop(source.file, reason)
        if dropped:
            self._forget()
        return dropped

    def require_batches(self) -> None:
        """InputError with the funnel if a dataset has no whole batch left."""
        for dataset in self.datasets.values():
            dataset.require_batches()

    def identity(self) -> str:
        """A hash of the samples, buckets, weights and steps that the order is made of: what else than the seed decides it."""
        told = hashlib.blake2b(digest_size=16)
        for group in (group for share in self._shares() for group in share.groups):
            names = [group.dataset.samples[index].name for index in group.indexes]
            told.update(repr((group.dataset.name, group.bucket, group.batch_size, group.rounds, names)).encode())
        lanes = [(share.dataset.name, self._lane(share)) for share in self._shares()]
        if any(lane != Lane(lane.batches) for _, lane in lanes):
            told.update(repr(lanes).encode())
        return told.hexdigest()

    def epoch_of(self, position: int) -> int:
        """The epoch, from 0, that the batch at this position belongs to: as many batches as the datasets that are there have.

        Where datasets come or go an epoch ends early and another begins.
        """
        segment = self._segment(position)
        return segment.epochs + (position - segment.start) // segment.length

    def draws(self, position: int) -> tuple[Draw, ...]:
        """The samples in the batch at this position, as they are drawn."""
        segment = self._segment(position)
        number, slot = divmod(position - segment.start, segment.round)
        lane, turn = segment.turn(number, int(self._round(segment, number)[slot]))
        share = self._shares()[lane]
        epoch, own = divmod(turn, share.batches)
        shuffled, cut = self._epoch(lane, epoch, shuffles=segment.weighted)
        own = own if shuffled is None else int(shuffled[own])
        which = int(np.searchsorted(share.ends, own, side="right"))
        group = share.groups[which]
        entries = cut[which][own - int(share.ends[which]) + group.batches]
        drawn = (divmod(int(entry), group.rounds) for entry in entries)
        return tuple(Draw(group.dataset, group.bucket, index, epoch, repeat) for index, repeat in drawn)

    def batch(self, position: int) -> tuple[Source, ...]:
        """The sources of the batch at this position: files, with the captions and crops chosen for this epoch."""
        return tuple(self.source(draw) for draw in self.draws(position))

    def source(self, draw: Draw) -> Source:
        """A drawn sample with its caption, or the empty one for dropout, and its crop."""
        dataset, sample = draw.dataset, draw.dataset.samples[draw.index]
        caption = self._caption(draw, sample)
        if dataset.kind.draws:
            return dataset.source(sample, caption, self._part(draw, sample))
        known = self._known.get((dataset.name, draw.index))
        if known is None:
            known = dataset.source(sample, caption, dataset.part(sample, None))
            if len(self._known) < KNOWN_SOURCES:
                self._known[dataset.name, draw.index] = known
        return known if caption == known.caption else replace(known, caption=caption)

    def neighbours(self, draw: Draw) -> Iterator[Draw]:
        """What could stand in for a sample: the others of its bucket, from the next one on."""
        indexes = np.asarray(draw.dataset.buckets[draw.bucket])
        start = int(np.flatnonzero(indexes == draw.index)[0])
        for index in np.roll(indexes, -start)[1:]:
            yield Draw(draw.dataset, draw.bucket, int(index), draw.epoch, draw.repeat)

    def all_sources(self) -> Iterator[Source]:
        """Every sample and crop that a cache must hold, once each, with the first of its captions."""
        for dataset in self.datasets.values():
            for index in np.sort(_joined(dataset)):
                sample = dataset.samples[index]
                parts = (self._variant(dataset, sample, variant) for variant in range(dataset.variants))
                for part in parts if dataset.kind.draws else [dataset.part(sample, None)]:
                    yield dataset.source(sample, Caption(sample.captions[0]), part)

    def all_captions(self) -> tuple[Caption, ...]:
        """Every caption that may be drawn, once each; the empty one too where captions are dropped out."""
        captions: dict[Caption, None] = {}
        for dataset in self.datasets.values():
            if dataset.table.caption_dropout > 0:
                captions[UNCONDITIONAL] = None
            for index in _joined(dataset):
                captions.update(dict.fromkeys(map(Caption, dataset.samples[index].captions)))
        return tuple(captions)

    def _forget(self) -> None:
        """Take up what the datasets hold when next asked."""
        self._known: dict[tuple[str, int], Source] = {}
        self._held: tuple[list[_Share], tuple[Segment, ...]] | None = None
        self._current_round: tuple[tuple[int, int], NDArray[np.int64]] | None = None
        self._current: dict[int, tuple[int, NDArray[np.int64] | None, list[Entries]]] = {}

    def _arranged(self) -> tuple[list[_Share], tuple[Segment, ...]]:
        if self._held is None:
            shares = [self._share(dataset) for dataset in self.datasets.values()]
            self._held = shares, segments_of([self._lane(share) for share in shares])
        return self._held

    def _shares(self) -> list[_Share]:
        return self._arranged()[0]

    def _segment(self, position: int) -> Segment:
        segments = self._arranged()[1]
        return segments[bisect_right(segments, position, key=lambda segment: segment.start) - 1]

    def _lane(self, share: _Share) -> Lane:
        table = share.dataset.table
        end = None if table.end_step is None else table.end_step * self.accumulation
        return Lane(share.batches, table.weight, table.start_step * self.accumulation, end)

    def _share(self, dataset: Dataset) -> _Share:
        groups = tuple(self._group(dataset, bucket) for bucket in dataset.buckets)
        ends = np.cumsum([group.batches for group in groups], dtype=np.int64)
        return _Share(dataset, groups, ends, sum(group.batches for group in groups))

    def _group(self, dataset: Dataset, bucket: Bucket) -> _Group:
        indexes = np.array(dataset.buckets[bucket], dtype=np.int64)
        rounds = max(dataset.table.repeats, -(-dataset.batch_size // len(indexes)))
        return _Group(dataset, bucket, indexes, dataset.batch_size, dataset.batches_of(len(indexes)), rounds)

    def _round(self, segment: Segment, number: int) -> NDArray[np.int64]:
        """Whose turn it is at each position of a round."""
        current, which = self._current_round, (segment.number, number)
        if current is None or current[0] != which:
            self._current_round = current = (which, segment.shuffled(self.seed, number))
        return current[1]

    def _epoch(self, lane: int, epoch: int, shuffles: bool) -> tuple[NDArray[np.int64] | None, list[Entries]]:
        """The numbers of the batches in an epoch of one dataset, if it shuffles its own, and what is in those of each group."""
        current = self._current.get(lane)
        if current is None or current[0] != epoch:
            share = self._shares()[lane]
            cut = [self._cut(group, epoch) for group in share.groups]
            generator = numpy_generator(self.seed, "turns", epoch, share.dataset.name)
            shuffled = generator.permutation(share.batches) if shuffles else None
            self._current[lane] = current = (epoch, shuffled, cut)
        return current[1], current[2]

    def _cut(self, group: _Group, epoch: int) -> Entries:
        """Shuffle the draws of a bucket and cut them into whole batches."""
        generator = numpy_generator(self.seed, "order", epoch, group.dataset.name, *group.bucket)
        drawn, wanted = group.dataset.table.repeats * len(group.indexes), group.batches * group.batch_size
        if drawn >= wanted:
            repeats = np.arange(group.dataset.table.repeats, dtype=np.int64)
            entries = generator.permutation((group.indexes[:, None] * group.rounds + repeats).ravel())[:wanted]
        else:  # oversubscribed: go round and round the shuffled samples until one batch is full
            turns = np.arange(wanted, dtype=np.int64)
            entries = generator.permutation(group.indexes)[turns % len(group.indexes)] * group.rounds + turns // len(group.indexes)
        return entries.reshape(group.batches, group.batch_size)

    def _caption(self, draw: Draw, sample: Sample) -> Caption:
        """The caption of a drawn sample, or the empty one for dropout; where there is no choice, nothing is drawn."""
        dropout, captions = draw.dataset.table.caption_dropout, sample.captions
        if not dropout and len(captions) == 1:
            return Caption(captions[0])
        generator = numpy_generator(self.seed, "caption", draw.epoch, draw.dataset.name, draw.index, draw.repeat)
        dropped = generator.random() < dropout
        return UNCONDITIONAL if dropped else Caption(captions[int(generator.integers(len(captions)))])

    def _part(self, draw: Draw, sample: Sample) -> tuple[Crop, Window | None]:
        """Which part of its file a drawn sample is, where parts are drawn."""
        dataset = draw.dataset
        if self.cached:
            where = (draw.epoch, dataset.name, draw.index, draw.repeat)
            return self._variant(dataset, sample, int(numpy_generator(self.seed, "variant", *where).integers(dataset.variants)))
        generator = numpy_generator(self.seed, "crop", dataset.name, sample.name, "epoch", draw.epoch, draw.repeat)
        return dataset.part(sample, generator)

    def _variant(self, dataset: Dataset, sample: Sample, variant: int) -> tuple[Crop, Window | None]:
        """One of the parts that are fixed for a sample when there is a cache."""
        return dataset.part(sample, numpy_generator(self.seed, "crop", dataset.name, sample.name, variant))


def _joined(dataset: Dataset) -> NDArray[np.int64]:
    """The samples of all buckets, one bucket after the other."""
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(indexes, np.int64) for indexes in dataset.buckets.values())])

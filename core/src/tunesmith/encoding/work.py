"""What the cache is filled with: captions, and samples with their inputs."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from ..batch import Batch, Caption, Field, Source
from ..cache.store import caption_key
from ..data.order import Order
from ..kinds import Unreadable
from .encode import Inputs, batch_of, files_of, key_of, needs_of, shape_of
from .watch import Watch

if TYPE_CHECKING:
    from ..run import Run
    from .fill import Stages

T = TypeVar("T", bound=Source | Caption)
A = TypeVar("A")
CHUNK = 4096
"""Things that are looked at together."""


@dataclass(frozen=True)
class Job(Generic[T]):
    """A thing to encode, its position, and the keys, by field, of what is to be made of it; `is_whole` if nothing else is missing."""

    position: int
    item: T
    lacks: Mapping[str, str]
    is_whole: bool = True


class Work(ABC, Generic[T]):
    """Things of one kind that fields are made of."""

    what: ClassVar[str]

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = fields

    @abstractmethod
    def items(self) -> Iterable[T]:
        """All of them, every time in the same order."""

    @abstractmethod
    def looking(self, progress: Stages) -> AbstractContextManager[Callable[[int], None]]:
        """The stage in which all are looked at; what it gives counts them."""

    @abstractmethod
    def keys(self, items: Sequence[T], readers: Executor, done: Callable[[int], None] = lambda count: None) -> list[Mapping[str, str]]:
        """For each item its keys by field; none for one that is lost."""

    @abstractmethod
    def batch(self, items: Sequence[T], inputs: Sequence[Inputs], wanted: Iterable[str]) -> Batch:
        """What is given to the encoders."""

    def shape(self, item: T) -> tuple[object, ...]:
        """What items have in common that can be one batch."""
        return ()

    def inputs(self, item: T, lacks: Iterable[str]) -> Inputs | Unreadable:
        """What is decoded of an item for the fields that it lacks."""
        return {}

    def lose(self, item: T, reason: str) -> None:
        """Note that an item could not be decoded."""


class CaptionWork(Work[Caption]):
    """Captions, and the fields of captions."""

    what = "captions"

    def __init__(self, fields: Sequence[Field], captions: Iterable[Caption]) -> None:
        super().__init__(fields)
        self.captions = tuple(captions)

    def items(self) -> Iterable[Caption]:
        """The captions, once each."""
        return dict.fromkeys(self.captions)

    @contextmanager
    def looking(self, progress: Stages) -> Iterator[Callable[[int], None]]:
        """Nothing to show: no file is read."""
        yield lambda count: None

    def keys(
        self, items: Sequence[Caption], readers: Executor, done: Callable[[int], None] = lambda count: None
    ) -> list[Mapping[str, str]]:
        """For each caption its keys by field."""
        return [{field.key: caption_key(field, caption) for field in self.fields} for caption in items]

    def batch(self, items: Sequence[Caption], inputs: Sequence[Inputs], wanted: Iterable[str]) -> Batch:
        """Captions alone."""
        return Batch(captions=tuple(items), wanted=frozenset(wanted))


class SampleWork(Work[Source]):
    """Samples, and the fields of samples. `lost` are those that cannot be read or decoded, by file, with the reason."""

    what = "samples"

    def __init__(self, run: Run, fields: Sequence[Field], order: Order, watch: Watch) -> None:
        super().__init__(fields)
        self.run = run
        self.order = order
        self.watch = watch
        self.lost: dict[tuple[str, Path], tuple[Source, str]] = {}

    def items(self) -> Iterable[Source]:
        """Every sample and part that the cache must hold."""
        return self.order.all_sources()

    @contextmanager
    def looking(self, progress: Stages) -> Iterator[Callable[[int], None]]:
        """Looking at samples is hashing their files."""
        datasets = self.order.datasets.values()
        total = sum(dataset.variants * sum(map(len, dataset.buckets.values())) for dataset in datasets)
        with progress.stage("hashing files", total) as bar:
            yield bar.advance

    def keys(self, items: Sequence[Source], readers: Executor, done: Callable[[int], None] = lambda count: None) -> list[Mapping[str, str]]:
        """For each sample its keys by field; none for one whose files cannot be read, which is lost."""
        datasets, sources_of = self.order.datasets, Counter(source.file for source in items)
        files = dict.fromkeys(file for one in items for field in self.fields for file in files_of(datasets[one.dataset], field, one))
        contents: dict[Path, str | OSError] = {}
        for file, content in self.run.file_hashes.of_many(list(files | dict.fromkeys(sources_of)), readers, self._reading):
            contents[file] = content
            done(sources_of[file])
        self.watch.at(None)

        def content_of(file: Path) -> str:
            content = contents[file]
            if isinstance(content, OSError):
                raise content
            return content

        found: list[Mapping[str, str]] = []
        for source in items:
            found.append({})
            if (source.dataset, source.file) in self.lost:
                continue
            try:
                content_of(source.file)
                found[-1] = {field.key: key_of(datasets[source.dataset], field, source, content_of) for field in self.fields}
            except OSError:
                self.lost[source.dataset, source.file] = (source, "cannot be read")
        return found

    def _reading(self, file: Path) -> None:
        self.watch.at(partial("reading {}".format, file))

    def batch(self, items: Sequence[Source], inputs: Sequence[Inputs], wanted: Iterable[str]) -> Batch:
        """Samples of one shape, with their inputs."""
        return batch_of(items, inputs, wanted)

    def shape(self, item: Source) -> tuple[object, ...]:
        """Dataset, size and length."""
        return shape_of(item)

    def inputs(self, item: Source, lacks: Iterable[str]) -> Inputs | Unreadable:
        """What is decoded of a sample for the fields that it lacks."""
        if (item.dataset, item.file) in self.lost:
            return Unreadable(item.file, self.lost[item.dataset, item.file][1])
        dataset, wanted = self.order.datasets[item.dataset], set(lacks)
        try:
            return {need: dataset.load(item, need) for need in needs_of((field for field in self.fields if field.key in wanted), dataset)}
        except Unreadable as error:
            return error

    def lose(self, item: Source, reason: str) -> None:
        """Note that a sample's file could not be decoded; the first reason is remembered."""
        self.lost.setdefault((item.dataset, item.file), (item, reason))


def chunks(items: Iterable[A]) -> Iterator[list[A]]:
    """The items in portions that are looked at together."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk

"""Samples that are there twice: the same bytes under two names, or two files that share one caption."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .dataset import Dataset, Sample
from .hashing import FileHashes
from .pairing import stem_of

GLIMPSE = 4096
"""Bytes from the middle of a file by which most files of one size are told apart."""


@dataclass(frozen=True)
class Duplicates:
    """Files that are duplicates of each other, by dataset and name: of one content, or in one dataset of one name but for the ending."""

    why: Literal["same bytes", "same name"]
    files: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.why}: " + ", ".join(f"{dataset}:{name}" for dataset, name in self.files)


def duplicates(datasets: Sequence[Dataset], hashes: FileHashes) -> list[Duplicates]:
    """All duplicates among the samples of some datasets; only files of which there are several of one size are read."""
    return [*_same_bytes(datasets, hashes), *_same_names(datasets)]


def _same_bytes(datasets: Sequence[Dataset], hashes: FileHashes) -> Iterator[Duplicates]:
    """Two datasets may well be made of one file, which is no duplicate of itself."""
    by_size: dict[int, dict[str, tuple[str, str]]] = {}
    for dataset in datasets:
        for sample in _files(dataset):
            try:
                size = os.stat(sample.where).st_size
            except OSError:  # it is gone since; whoever decodes it tells
                continue
            by_size.setdefault(size, {}).setdefault(sample.where, (dataset.name, sample.name))
    by_content: dict[str, list[tuple[str, str]]] = {}
    for size, names in by_size.items():
        for alike in _alike(names, size):
            for where in alike:
                content = _content(where, hashes)
                if content is not None:
                    by_content.setdefault(content, []).append(names[where])
    yield from (Duplicates("same bytes", tuple(files)) for files in by_content.values() if len(files) > 1)


def _alike(files: Iterable[str], size: int) -> list[list[str]]:
    """Those of some files of one size that are equal as far as a glimpse tells, which saves reading the others."""
    several = list(files)
    groups: dict[bytes, list[str]] = {}
    for where in several if len(several) > 1 else ():
        try:
            with open(where, "rb") as file:
                file.seek(size // 2)
                groups.setdefault(file.read(GLIMPSE), []).append(where)
        except OSError:
            continue
    return [alike for alike in groups.values() if len(alike) > 1]


def _same_names(datasets: Iterable[Dataset]) -> Iterator[Duplicates]:
    for dataset in datasets:
        by_stem: dict[str, list[str]] = {}
        for sample in _files(dataset):
            by_stem.setdefault(stem_of(sample.name), []).append(sample.name)
        for names in by_stem.values():
            if len(names) > 1:
                yield Duplicates("same name", tuple((dataset.name, name) for name in names))


def _files(dataset: Dataset) -> Iterator[Sample]:
    """The first sample of each file."""
    last = None
    for sample in dataset.samples:
        if sample.where != last:
            yield sample
        last = sample.where


def _content(where: str, hashes: FileHashes) -> str | None:
    try:
        return hashes.of(Path(where))
    except OSError:
        return None

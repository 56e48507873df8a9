"""One folder of pictures: which of its files can be trained on, and in which bucket each of them is."""

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from ..batch import Caption, Crop, Source, Window
from ..config.datasets import SampleTable
from ..config.tables import RunTable
from ..errors import InputError
from ..family import Family
from ..kinds import Kind, Piece, Probe, Unfit, Unreadable
from .captions import NoCaption, captions_of, text_file
from .funnel import Funnel
from .pictures import CORE_KINDS, MASK, full_mask

Bucket = tuple[int, int, int]
"""(width, height, frames) of all samples in it."""
PROBES = 8
"""Files whose headers are read at once."""


Part: TypeAlias = tuple[Crop, Window | None]
"""Which part of its file a sample is."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: its file, its name below the dataset's folder, its captions, what the header told, and its piece of it.

    Of a file with several pieces all but the first have names that end in #2, #3, ... `companions` are files of other
    datasets, by role. Paths are texts, which take less memory.
    """

    where: str
    name: str
    captions: tuple[str, ...]
    probe: Probe
    piece: Piece
    companions: tuple[tuple[str, str], ...] = ()

    @property
    def file(self) -> Path:
        """The file."""
        return Path(self.where)

    @property
    def bucket(self) -> Bucket:
        """The bucket that the sample is in."""
        return (*self.piece.target.size, self.piece.frames)


@dataclass(frozen=True)
class Companion:
    """The files of a dataset that belongs to another, by their names without ending."""

    name: str
    kind: Kind[Any]
    files: Mapping[str, str]


class Dataset:
    """The usable samples of one dataset, in the order of their names, and what became of the other files.

    `buckets` holds for each bucket the indexes of its samples; those that cannot fill a batch are not there.
    `companions` are the datasets that belong to this one, by role.
    """

    def __init__(
        self,
        table: SampleTable,
        kind: Kind[Any],
        name: str,
        batch_size: int,
        samples: Sequence[Sample],
        funnel: Funnel,
        companions: Mapping[str, Companion] | None = None,
    ) -> None:
        self.table = table
        self.kind = kind
        self.name = name
        self.batch_size = batch_size
        self.samples = list(samples)
        self.funnel = funnel
        self.companions = dict(companions or {})
        self.buckets: dict[Bucket, list[int]] = {}
        self._fill_buckets()

    @property
    def variants(self) -> int:
        """With a cache: how many parts of each sample are drawn and kept."""
        return int(getattr(self.table, "variants", 1)) if self.kind.draws else 1

    def source(self, sample: Sample, caption: Caption, part: Part) -> Source:
        """A sample with a caption and a part of its file."""
        companions = tuple((role, Path(where)) for role, where in sample.companions)
        return Source(self.name, sample.file, caption, *part, companions)

    def load(self, source: Source, need: str) -> Tensor:
        """An input of one of this dataset's sources, on the CPU; Unreadable if a file cannot be decoded."""
        if need in self.companions:
            return self.companions[need].kind.companion(source, source.companion(need), self.kind)
        return full_mask(source) if need == MASK else self.kind.load(source, need)

    def recipe(self, need: str) -> str:
        """Names how an input is made of files, for the keys of the cache."""
        if need in self.companions:
            return self.companions[need].kind.recipe(need)
        return "mask-full" if need == MASK else self.kind.recipe(need)

    def files(self, source: Source, need: str) -> tuple[Path, ...]:
        """The files besides the sample's own that an input is made of."""
        companion = source.companion(need)
        return (companion,) if companion is not None else () if need in (*self.companions, MASK) else self.kind.files(source, need)

    def drop(self, file: Path, reason: str) -> bool:
        """Leave out a file that turned out to be unreadable; False if it is out already."""
        kept = [sample for sample in self.samples if sample.where != str(file)]
        if len(kept) == len(self.samples):
            return False
        dropped = next(sample for sample in self.samples if sample.where == str(file))
        self.samples = kept
        self.funnel.lose("readable", reason, dropped.name)
        self._fill_buckets()
        return True

    def batches_of(self, count: int) -> int:
        """How many whole batches one epoch takes from a bucket with so many samples."""
        whole = count * self.table.repeats // self.batch_size
        return max(whole, 1) if self.table.oversubscribe else whole

    def require_batches(self) -> None:
        """InputError with the funnel and what helps, if there is no whole batch."""
        if not self.funnel.batches:
            raise InputError("\n".join([f"dataset {self.name!r} yields no whole batch", *self.funnel.lines(), *self._remedies()]))

    def _fill_buckets(self) -> None:
        found: dict[Bucket, list[int]] = {}
        for index, sample in enumerate(self.samples):
            found.setdefault(sample.bucket, []).append(index)
        self.funnel.forget("batched")
        for bucket in [bucket for bucket, indexes in found.items() if not self.batches_of(len(indexes))]:
            indexes = found.pop(bucket)
            for index in indexes:
                where = f"{self.samples[index].name} with {len(indexes)} in {bucket[0]}x{bucket[1]}"
                self.funnel.lose("batched", f"the bucket has too few samples for a batch of {self.batch_size}", where)
        self.buckets = dict(sorted(found.items()))
        counts = [(len(indexes), self.batches_of(len(indexes))) for indexes in self.buckets.values()]
        self.funnel.batches = sum(batches for _, batches in counts)
        self.funnel.drawn = self.funnel.batches * self.batch_size
        self.funnel.left_over = sum(max(0, count * self.table.repeats - batches * self.batch_size) for count, batches in counts)
        self.funnel.notes = [*self._upscaled()]

    def _upscaled(self) -> Iterator[str]:
        small = [one for one in self.samples if any(map(operator.lt, one.probe.size, one.piece.target.resize))]
        if small:
            first, target = small[0], small[0].piece.target.resize
            yield (
                f"{len(small)} of {len(self.samples)} pictures are smaller than their target and are enlarged "
                f"({first.name}: {first.probe.width}x{first.probe.height} to {target[0]}x{target[1]}); a smaller `resolution` avoids that"
            )

    def _remedies(self) -> list[str]:
        if not self.samples:
            return [f"remedy: put jpg, png or webp files with captions (captions = {self.table.captions!r}) into {self.table.path}"]
        largest = max(_bucket_sizes(self.samples))
        fitting = largest * self.table.repeats
        repeats = -(-self.batch_size // largest)
        return [
            f"remedies: `repeats = {repeats}` or `oversubscribe = true` in this dataset's table, or `batch_size = {fitting}`, "
            f"or more pictures (the largest bucket has {largest})"
        ]


def scan(table: SampleTable, family: Family, run: RunTable, kind: Kind[Any] | None = None) -> Dataset:
    """The dataset of a table; InputError with the funnel and remedies if it yields no whole batch."""
    dataset = survey(table, family, run, kind)
    dataset.require_batches()
    return dataset


def survey(table: SampleTable, family: Family, run: RunTable, kind: Kind[Any] | None = None) -> Dataset:
    """The dataset of a table even if it yields no batch; InputError if its folder is not there."""
    kind = kind or CORE_KINDS[table.kind](table, family)
    name = table.named().name or "dataset"
    scanner = _Scanner(table, kind, Funnel(name))
    return Dataset(table, kind, name, table.batch_size or run.batch_size, scanner.samples(), scanner.funnel)


class _Scanner:
    """Finds the pictures of a folder and tells the funnel what it leaves out."""

    def __init__(self, table: SampleTable, kind: Kind[Any], funnel: Funnel) -> None:
        self.folder = Path(table.path or "")
        if not self.folder.is_dir():
            raise InputError(f"the dataset's `path` {table.path!r} is not a folder; relative paths start at the config file")
        self.table = table
        self.kind = kind
        self.funnel = funnel
        self.homes = _homes(self.folder.resolve())

    def samples(self) -> list[Sample]:
        """The usable files, in the order of their names."""
        files = [(name, path) for name, path in self._files() if self._stays(name, path)]
        with ThreadPoolExecutor(PROBES) as pool:
            probes = list(pool.map(self._probed, [path for _, path in files]))
        found = (self._samples(name, path, probe) for (name, path), probe in zip(files, probes, strict=True))
        return [sample for samples in found for sample in samples]

    def _files(self) -> list[tuple[str, Path]]:
        """Pictures and linked folders by their names below the folder, sorted; names of folders end with a slash.

        Folders that cannot be listed are told to the funnel.
        """
        found: list[tuple[str, Path]] = []
        for parent, folders, names in os.walk(self.folder, onerror=self._lose_folder):
            here = Path(parent)
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [(self._name(here / name), here / name) for name in names if self._looks_right(name)]
            found += [(f"{self._name(here / name)}/", here / name) for name in folders if (here / name).is_symlink()]
        return sorted(found)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _lose_folder(self, error: OSError) -> None:
        self.funnel.total += 1
        name = self._name(Path(os.fsdecode(error.filename)))
        self.funnel.lose("readable", f"a folder that cannot be listed ({error.strerror})", f"{name}/")

    def _stays(self, name: str, path: Path) -> bool:
        self.funnel.total += 1
        if name.endswith("/"):
            self.funnel.lose("readable", "a linked folder is not followed", name)
        elif not _is_text(name):
            self.funnel.lose("readable", "its name is not UTF-8; rename it", name)
        elif path.suffix.lower() in self.kind.other_suffixes:
            self.funnel.lose("readable", f"{path.suffix.lower()} is not read; make it a JPEG, PNG or WebP file", name)
        elif self._leaves(path):
            self.funnel.lose("readable", "a link that leaves the dataset's folder is not followed", name)
        else:
            return True
        return False

    def _leaves(self, path: Path) -> bool:
        if not path.is_symlink():
            return False
        target = Path(os.path.realpath(path))  # unlike Path.resolve, it takes links that go round in a circle
        return not any(target.is_relative_to(home) for home in self.homes)

    def _looks_right(self, name: str) -> bool:
        return not name.startswith(".") and os.path.splitext(name)[1].lower() in self.kind.suffixes | self.kind.other_suffixes

    def _probed(self, file: Path) -> Probe | Unreadable:
        try:
            return self.kind.probe(file)
        except Unreadable as error:
            return error

    def _samples(self, name: str, path: Path, probe: Probe | Unreadable) -> list[Sample]:
        if isinstance(probe, Unreadable):
            self.funnel.lose("readable", probe.reason, name)
            return []
        try:
            if self.table.captions == "textfile" and self._leaves(text_file(path)):
                raise NoCaption("its .txt file is a link that leaves the dataset's folder")
            captions = captions_of(path, self.table)
            pieces = self.kind.pieces(probe)
        except NoCaption as error:
            self.funnel.lose("captioned", str(error), name)
            return []
        except Unfit as error:
            self.funnel.lose(error.station, error.reason, f"{name} {error.detail}".rstrip())
            return []
        names = [name, *(f"{name}#{number}" for number in range(2, len(pieces) + 1))]
        return [Sample(str(path), name, captions, probe, piece) for name, piece in zip(names, pieces, strict=True)]


def _bucket_sizes(samples: Sequence[Sample]) -> list[int]:
    return list(Counter(sample.bucket for sample in samples).values())


def _is_text(name: str) -> bool:
    """Whether the name can be written down: what is not UTF-8 comes from the system as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _homes(folder: Path) -> list[Path]:
    """Where links may point: into the folder and, if that is a snapshot in a Hugging Face cache, to the cache's blobs."""
    repositories = [parent.parent for parent in (folder, *folder.parents) if parent.name == "snapshots"]
    return [folder, *(repository / "blobs" for repository in repositories[:1])]

"""One folder of pictures: which of its files can be trained on, and in which bucket each of them is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..config.tables import DatasetTable, RunTable
from ..errors import InputError
from ..family import Family
from .captions import NoCaption, captions_of, text_file
from .funnel import Funnel
from .geometry import MOST_CUT, Rule, Size, Target, rule_of, target_size, too_elongated
from .images import OTHER_SUFFIXES, SUFFIXES, Unreadable, probe

Bucket = tuple[int, int, int]
"""(width, height, frames) of all samples in it."""
PROBES = 8
"""Files whose headers are read at once."""


@dataclass(frozen=True)
class Sample:
    """One usable file: where it is, its name below the dataset's folder, its captions, its size and its bucket."""

    file: Path
    name: str
    captions: tuple[str, ...]
    size: Size
    target: Target
    frames: int = 1

    @property
    def bucket(self) -> Bucket:
        """The bucket that the sample is in."""
        return (*self.target.size, self.frames)


class Dataset:
    """The usable samples of one dataset, in the order of their names, and what became of the other files.

    `buckets` holds for each bucket the indexes of its samples; those that cannot fill a batch are not there.
    """

    def __init__(self, table: DatasetTable, name: str, batch_size: int, samples: Sequence[Sample], funnel: Funnel) -> None:
        self.table = table
        self.name = name
        self.batch_size = batch_size
        self.samples = list(samples)
        self.funnel = funnel
        self.buckets: dict[Bucket, list[int]] = {}
        self._fill_buckets()

    def drop(self, file: Path, reason: str) -> bool:
        """Leave out a file that turned out to be unreadable; False if it is out already."""
        kept = [sample for sample in self.samples if sample.file != file]
        if len(kept) == len(self.samples):
            return False
        [dropped] = [sample for sample in self.samples if sample.file == file]
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
        self.funnel.forget("bucketed")
        for bucket in [bucket for bucket, indexes in found.items() if not self.batches_of(len(indexes))]:
            indexes = found.pop(bucket)
            for index in indexes:
                where = f"{self.samples[index].name} with {len(indexes)} in {bucket[0]}x{bucket[1]}"
                self.funnel.lose("bucketed", f"the bucket has too few samples for a batch of {self.batch_size}", where)
        self.buckets = dict(sorted(found.items()))
        counts = [(len(indexes), self.batches_of(len(indexes))) for indexes in self.buckets.values()]
        self.funnel.batches = sum(batches for _, batches in counts)
        self.funnel.drawn = self.funnel.batches * self.batch_size
        self.funnel.left_over = sum(max(0, count * self.table.repeats - batches * self.batch_size) for count, batches in counts)
        self.funnel.notes = [*self._upscaled()]

    def _upscaled(self) -> Iterator[str]:
        small = [one for one in self.samples if one.size[0] < one.target.resize[0] or one.size[1] < one.target.resize[1]]
        if small:
            first, target = small[0], small[0].target.resize
            yield (
                f"{len(small)} of {len(self.samples)} pictures are smaller than their target and are enlarged "
                f"({first.name}: {first.size[0]}x{first.size[1]} to {target[0]}x{target[1]}); a smaller `resolution` avoids that"
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


def scan(table: DatasetTable, family: Family, run: RunTable) -> Dataset:
    """The dataset of a table; InputError with the funnel and remedies if it yields no whole batch."""
    dataset = survey(table, family, run)
    dataset.require_batches()
    return dataset


def survey(table: DatasetTable, family: Family, run: RunTable) -> Dataset:
    """The dataset of a table even if it yields no batch; InputError if its folder is not there."""
    scanner = _Scanner(table, rule_of(table, family), Funnel(table.name or table.path.resolve().name))
    return Dataset(table, scanner.funnel.dataset, table.batch_size or run.batch_size, scanner.samples(), scanner.funnel)


class _Scanner:
    """Finds the pictures of a folder and tells the funnel what it leaves out."""

    def __init__(self, table: DatasetTable, rule: Rule, funnel: Funnel) -> None:
        if not table.path.is_dir():
            raise InputError(f"the dataset's `path` {str(table.path)!r} is not a folder; relative paths start at the config file")
        self.table = table
        self.rule = rule
        self.funnel = funnel
        self.homes = _homes(table.path.resolve())

    def samples(self) -> list[Sample]:
        """The usable files, in the order of their names."""
        files = [(name, path) for name, path in self._files() if self._stays(name, path)]
        with ThreadPoolExecutor(PROBES) as pool:
            sizes = list(pool.map(_probed, [path for _, path in files]))
        found = (self._sample(name, path, size) for (name, path), size in zip(files, sizes, strict=True))
        return [sample for sample in found if sample is not None]

    def _files(self) -> list[tuple[str, Path]]:
        """Pictures and linked folders by their names below the folder, sorted; names of folders end with a slash.

        Folders that cannot be listed are told to the funnel.
        """
        found: list[tuple[str, Path]] = []
        for parent, folders, names in os.walk(self.table.path, onerror=self._lose_folder):
            here = Path(parent)
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [(self._name(here / name), here / name) for name in names if _is_picture(name)]
            found += [(f"{self._name(here / name)}/", here / name) for name in folders if (here / name).is_symlink()]
        return sorted(found)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.table.path).as_posix()

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
        elif path.suffix.lower() in OTHER_SUFFIXES:
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

    def _sample(self, name: str, path: Path, size: Size | Unreadable) -> Sample | None:
        if isinstance(size, Unreadable):
            self.funnel.lose("readable", size.reason, name)
            return None
        try:
            if self.table.captions == "textfile" and self._leaves(text_file(path)):
                raise NoCaption("its .txt file is a link that leaves the dataset's folder")
            captions = captions_of(path, self.table)
        except NoCaption as error:
            self.funnel.lose("captioned", str(error), name)
            return None
        target = target_size(size, self.rule)
        if too_elongated(target):
            self.funnel.lose("sized", f"too elongated: less than 1/{MOST_CUT} would be left", f"{name} {size[0]}x{size[1]}")
            return None
        return Sample(path, name, captions, size, target)


def _bucket_sizes(samples: Sequence[Sample]) -> list[int]:
    return list(Counter(sample.bucket for sample in samples).values())


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES | OTHER_SUFFIXES


def _is_text(name: str) -> bool:
    """Whether the name can be written down: what is not UTF-8 comes from the system as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _homes(folder: Path) -> list[Path]:
    """Where links may point: into the folder and, if that is a snapshot in a Hugging Face cache, to the cache's blobs."""
    repositories = [parent.parent for parent in (folder, *folder.parents) if parent.name == "snapshots"]
    return [folder, *(repository / "blobs" for repository in repositories[:1])]


def _probed(file: Path) -> Size | Unreadable:
    try:
        return probe(file)
    except Unreadable as error:
        return error

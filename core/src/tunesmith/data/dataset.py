"""One dataset: its samples, and in which bucket each of them is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from ..batch import Caption, Crop, Source, Window
from ..config.datasets import SampleTable
from ..errors import InputError, TunesmithError
from ..kinds import Kind, Piece, Probe, Unreadable, blame_kind
from .funnel import Funnel
from .pairing import Companion
from .pictures import MASK, full_mask

Bucket = tuple[int, int, int]
"""(width, height, frames) of all samples in it."""
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
        self.companions = dict(companions or {})
        self._samples = list(samples)
        self._funnel = funnel
        self._notes = list(funnel.notes)
        self._buckets: dict[Bucket, list[int]] = {}
        self._known: dict[str, Sample] | None = None
        self._dropped: set[str] = set()
        self._fill_buckets()

    @property
    def samples(self) -> list[Sample]:
        """The samples in the order of their names."""
        self._settle()
        return self._samples

    @property
    def buckets(self) -> dict[Bucket, list[int]]:
        """For each bucket the indexes of its samples."""
        self._settle()
        return self._buckets

    @property
    def funnel(self) -> Funnel:
        """What became of the files."""
        self._settle()
        return self._funnel

    @property
    def variants(self) -> int:
        """With a cache: how many parts of each sample are drawn and kept."""
        return self.table.num_variants if self.kind.draws else 1

    def part(self, sample: Sample, generator: np.random.Generator | None) -> Part:
        """Which part of its file a sample is: the one that the settings fix, or one drawn."""
        try:
            return self.kind.part(sample.piece, generator)
        except TunesmithError:
            raise
        except Exception as error:
            blame_kind(error, self.table.kind, "part", sample.where)
            raise

    def source(self, sample: Sample, caption: Caption, part: Part) -> Source:
        """A sample with a caption and a part of its file."""
        companions = tuple((role, Path(where)) for role, where in sample.companions)
        return Source(self.name, sample.file, caption, *part, companions)

    def load(self, source: Source, need: str) -> Tensor:
        """An input of one of this dataset's sources, on the CPU; Unreadable if a file cannot be decoded."""
        try:
            if need in self.companions:
                return self.companions[need].kind.companion(source, source.companion(need), self.kind)
            return full_mask(source) if need == MASK else self.kind.load(source, need)
        except Unreadable as error:
            role = next((role for role, file in source.companions if file == error.path), None)
            if role is None or role not in self.companions:
                raise
            told = f"its {role} in dataset {self.companions[role].name!r} cannot be used ({error.reason})"  # told under the sample's name
            raise Unreadable(error.path, told) from error
        except TunesmithError:
            raise
        except Exception as error:
            if need in self.companions:
                blame_kind(error, self.companions[need].kind.table.kind, "companion", source.companion(need) or source.file)
            else:
                blame_kind(error, self.table.kind, "load", source.file)
            raise

    def recipe(self, need: str) -> str:
        """Names how an input is made of files, for the keys of the cache."""
        if need in self.companions:
            return self.companions[need].kind.recipe(need)
        return "mask-full" if need == MASK else self.kind.recipe(need)

    def gives(self, need: str) -> bool:
        """Whether samples have this input."""
        try:
            self.recipe(need)
        except KeyError:
            return False
        return True

    def files(self, source: Source, need: str) -> tuple[Path, ...]:
        """The files besides the sample's own that an input is made of."""
        companion = source.companion(need)
        return (companion,) if companion is not None else () if need in (*self.companions, MASK) else self.kind.files(source, need)

    def drop(self, file: Path, reason: str) -> bool:
        """Leave out a file that turned out to be unreadable; False if it is out already.

        Indexes of samples and buckets change when they are next looked at, so that many files may be dropped at once.
        """
        if self._known is None:
            self._known = {}
            for sample in self._samples:
                self._known.setdefault(str(sample.file), sample)
        dropped = self._known.pop(str(file), None)
        if dropped is None:
            return False
        self._funnel.lose("readable", reason, dropped.name)
        self._dropped.add(dropped.where)
        return True

    def batches_of(self, count: int) -> int:
        """How many whole batches one epoch takes from a bucket with so many samples."""
        whole = count * self.table.repeats // self.batch_size
        return max(whole, 1) if self.table.oversubscribe else whole

    def require_batches(self) -> None:
        """InputError with the funnel and what helps, if there is no whole batch."""
        if not self.funnel.batches:
            raise InputError("\n".join([f"dataset {self.name!r} yields no whole batch", *self.funnel.lines(), *self._remedies()]))

    def _settle(self) -> None:
        """Take out what was dropped."""
        if not self._dropped:
            return
        kept = [sample for sample in self._samples if sample.where not in self._dropped]
        self._funnel.more -= len(self._samples) - len(kept) - len(self._dropped)
        self._samples = kept
        self._dropped = set()
        self._fill_buckets()

    def _fill_buckets(self) -> None:
        found: dict[Bucket, list[int]] = {}
        for index, sample in enumerate(self._samples):
            found.setdefault(sample.bucket, []).append(index)
        funnel = self._funnel
        funnel.forget("batched")
        for bucket in [bucket for bucket, indexes in found.items() if not self.batches_of(len(indexes))]:
            indexes = found.pop(bucket)
            for index in indexes:
                where = f"{self._samples[index].name} with {len(indexes)} in {words(bucket)}"
                funnel.lose("batched", f"the bucket has too few samples for a batch of {self.batch_size}", where)
        self._buckets = dict(sorted(found.items()))
        counts = [(len(indexes), self.batches_of(len(indexes))) for indexes in self._buckets.values()]
        funnel.batches = sum(batches for _, batches in counts)
        funnel.drawn = funnel.batches * self.batch_size
        funnel.left_over = sum(max(0, count * self.table.repeats - batches * self.batch_size) for count, batches in counts)
        funnel.notes = [*self._notes, *self._upscaled(), *self._without_history()]

    def _upscaled(self) -> Iterator[str]:
        small = [one for one in self._samples if _is_enlarged(one)]
        if small:
            first, target = small[0], small[0].piece.target.resize
            yield (
                f"{len(small)} of {len(self._samples)} samples are smaller than their target and are enlarged "
                f"({first.name}: {first.probe.width}x{first.probe.height} to {target[0]}x{target[1]}); a smaller `resolution` avoids that"
            )

    def _without_history(self) -> Iterator[str]:
        wanted = self.kind.family.history
        clips = [one.piece for one in self._samples if one.piece.fps] if wanted else []
        having = sum(round((piece.start + piece.room) * piece.fps) >= wanted for piece in clips)
        if having < len(clips):
            remedy = "" if getattr(self.table, "window", "every") == "every" else '; `window = "every"` takes later windows, too'
            yield (
                f"{having} of {len(clips)} clips can have all {wanted} frames before them that {self.kind.family.name} is given, "
                f"the others begin too early in their files{remedy}"
            )

    def _remedies(self) -> list[str]:
        if not self.samples:
            if self.funnel.total:
                return ["remedy: every file is lost for the reasons above"]
            endings = ", ".join(sorted(self.kind.suffixes))
            return [f"remedy: put files with captions (captions = {self.table.captions!r}) there, whose names end in {endings}"]
        sizes = Counter(sample.bucket for sample in self.samples).values()
        largest, smallest = max(sizes), min(sizes)
        repeats = -(-self.batch_size // largest)
        remedies = [
            f"remedies: `repeats = {repeats}` or `oversubscribe = true` in this dataset's table, or "
            f"`batch_size = {largest * self.table.repeats}`, or more samples (the largest bucket has {largest})"
        ]
        if smallest < largest:
            repeats = -(-self.batch_size // smallest)
            remedies.append(f"`repeats = {repeats}` makes batches of all {len(sizes)} buckets (the smallest has {smallest})")
        return remedies


def words(bucket: Bucket) -> str:
    """A bucket as a person would write it: WIDTHxHEIGHT, of clips WIDTHxHEIGHT@FRAMES."""
    width, height, frames = bucket
    return f"{width}x{height}" if frames == 1 else f"{width}x{height}@{frames}"


def _is_enlarged(sample: Sample) -> bool:
    width, height = sample.piece.target.resize
    return sample.probe.width < width or sample.probe.height < height

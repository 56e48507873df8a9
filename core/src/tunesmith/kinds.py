"""Kinds of datasets: what the files of one are, which samples they give, and how a sample is decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor

from .batch import Crop, Source, Window
from .config.datasets import CORE_TABLES, DatasetTable
from .data.funnel import Station
from .data.geometry import Target
from .errors import TunesmithError
from .family import Family, Modality
from .hooks import blame
from .plugin import Plugin, Settings

D = TypeVar("D", bound=DatasetTable)
P = TypeVar("P", bound=Settings)


class Unreadable(TunesmithError):
    """A file that cannot be used, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class Unfit(TunesmithError):
    """A sound file that gives no sample under the dataset's settings: the station it does not reach, why, and its measure.

    Files are counted by `reason`, which therefore holds nothing of the file itself; that is in `detail`.
    """

    def __init__(self, station: Station, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} {detail}".rstrip())
        self.station = station
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Probe:
    """What a file's header tells, whatever the settings: the index of a dataset remembers it.

    `width` and `height` are upright. `seconds` is the duration, `fps` the mean rate, `frames` the number of frames as
    far as known; `sample_rate` and `channels` are 0 without sound. `sound` is when a clip's sound ends, in seconds
    after the first frame; 0 where that is not known.
    """

    width: int = 0
    height: int = 0
    frames: int = 1
    fps: float = 0.0
    seconds: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    sound: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class Piece:
    """One sample of a file: its target, and of a clip its frames and where its window lies.

    `frames` is the bucket's third number. The window starts at `start` seconds, or up to `room` seconds later where
    the settings draw it.
    """

    target: Target
    frames: int = 1
    fps: float = 0.0
    start: float = 0.0
    room: float = 0.0


class Kind(ABC, Generic[D]):
    """What the files of one dataset are. Made once for each dataset, from its table, for a family.

    A kind with a `role` belongs to another dataset wherever its table names a `host`: its files are then no samples but
    the other's companions, paired by their names without ending, and `companion` decodes them.
    """

    table_type: ClassVar[type[DatasetTable]]
    suffixes: ClassVar[frozenset[str]]
    """Endings, in lower case, of the files that are looked at."""
    other_suffixes: ClassVar[frozenset[str]] = frozenset()
    """Endings of files that look as if they belonged and are not read; they are named, so that nobody waits for them."""
    probing: ClassVar[str]
    """Names how `probe` reads headers, and changes with it: what the index remembers by another name is read again."""
    modalities: ClassVar[frozenset[Modality]]
    """What a family must generate to be trained on this kind; empty where the kind gives only companions."""
    role: ClassVar[str | None] = None
    fitting: ClassVar[str] = "stretched"
    """What becomes of a companion whose shape is not its sample's."""

    def __init__(self, table: D, family: Family) -> None:
        self.table = table
        self.family = family
        self.beside: Mapping[str, Mapping[str, Probe]] = {}
        """What is known of this dataset's companions, by role and by name without ending: set before samples are made."""

    def serving(self, host: Kind[Any]) -> Kind[D]:
        """This kind as what belongs to the samples of another, which may decide which files are read."""
        return self

    @classmethod
    @abstractmethod
    def probe(cls, file: Path) -> Probe:
        """What the header tells, without decoding; Unreadable if the file is none of this kind."""

    @abstractmethod
    def pieces(self, probe: Probe, name: str) -> tuple[Piece, ...]:
        """The samples of a file, at least one; Unfit if the settings leave none. `name` is the file's in its dataset."""

    @property
    def draws(self) -> bool:
        """Whether crop or window of a sample is drawn; otherwise `generator` is None below."""
        return False

    @abstractmethod
    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        """Which part of the file a sample is: the one that the settings fix, or one drawn."""

    def recipe(self, need: str) -> str:
        """Names how an input is made of a file, for the keys of the cache; changes with the code that makes it."""
        raise KeyError(need)

    def files(self, source: Source, need: str) -> tuple[Path, ...]:
        """The files besides the sample's own that an input is made of."""
        return ()

    def load(self, source: Source, need: str) -> Tensor:
        """A sample's input, without the batch's dimension, on the CPU; Unreadable if the file cannot be decoded."""
        raise KeyError(need)

    def companion(self, source: Source, file: Path | None, host: Kind[Any]) -> Tensor:
        """A file of this dataset decoded as the companion of a sample of another, in that sample's own part.

        `host` is the other dataset's kind. None is what a sample without a companion gets, where the table allows that.
        """
        raise NotImplementedError(f"{type(self).__name__} has no role beside other datasets")

    def remarks(self, probes: Mapping[str, Probe]) -> list[str]:
        """What a person should know of the samples, by name, that are in: sentences for the funnel."""
        return []


def blame_kind(error: BaseException, kind: str, method: str, file: str | Path) -> None:
    """Note on an error, which is a mistake of a kind, in which method of which plugin it was made, and with which file."""
    if kind in CORE_TABLES:
        error.add_note(f"in {method} of kind {kind!r}, with {file}")
    else:
        blame(error, kind, method, f", with {file}")


class KindPlugin(Plugin[P]):
    """A plugin that brings a kind of dataset: `[[datasets]] kind = NAME` switches it on, as its own table does."""

    kind: ClassVar[type[Kind[Any]]]

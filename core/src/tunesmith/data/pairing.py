"""Datasets that belong to another: whose files go with which sample, by their names without ending."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config.datasets import DatasetTable
from ..kinds import Kind, Probe, Unreadable
from ..sources import Entry
from .funnel import Funnel

EXAMPLES = 3
"""How many files are named where several are concerned."""
SHAPE = 1.02
"""A companion whose aspect ratio differs from its sample's by more than this factor is told."""


class Unpaired(Exception):
    """Why a sample is left out for the sake of its companion; it is counted by this reason."""


@dataclass(frozen=True)
class Companion:
    """The files of a dataset that belongs to another, by their names without ending.

    `damaged` are the names of which there is a file, but none that can be used.
    """

    name: str
    kind: Kind[Any]
    files: Mapping[str, str]
    probes: Mapping[str, Probe] = field(default_factory=dict)
    damaged: frozenset[str] = frozenset()
    funnel: Funnel = field(default_factory=lambda: Funnel(""))

    @property
    def role(self) -> str:
        """What the files are for the samples."""
        return self.kind.role or self.kind.table.kind

    @property
    def may_be_missing(self) -> bool:
        """Whether samples may be without."""
        table: DatasetTable = self.kind.table
        return table.may_be_missing

    @property
    def absence(self) -> str:
        """Why a sample is left out that must have a file here and has none."""
        return f"no {self.role} of its name in dataset {self.name!r}"

    def of(self, name: str) -> str | None:
        """The file that goes with a sample of this name, None if it is to be without; Unpaired if it cannot be trained on so."""
        stem = stem_of(name)
        file = self.files.get(stem)
        if file is not None:
            return file
        if stem in self.damaged:
            raise Unpaired(f"its {self.role} in dataset {self.name!r} cannot be used")
        if not self.may_be_missing:
            raise Unpaired(self.absence)
        return None


def stem_of(name: str) -> str:
    """The name of a file in its dataset, with folders and without ending."""
    return os.path.splitext(name)[0]


def companion_of(
    table: DatasetTable, kind: Kind[Any], entries: Sequence[Entry], probes: Sequence[Probe | Unreadable], funnel: Funnel
) -> Companion:
    """The files of a dataset that belongs to another; what cannot be used is told to its funnel.

    Of several files of one name the first is taken, in the order of their names, and that is noted.
    """
    files: dict[str, str] = {}
    names: dict[str, str] = {}
    known: dict[str, Probe] = {}
    damaged: set[str] = set()
    for entry, probe in zip(entries, probes, strict=True):
        stem = stem_of(entry.name)
        if isinstance(probe, Unreadable):
            funnel.lose("readable", probe.reason, entry.name)
            damaged.add(stem)
        elif stem in files:
            funnel.notes.append(f"{names[stem]} and {entry.name} are for the same sample; the first is taken")
        else:
            files[stem], names[stem], known[stem] = entry.where, entry.name, probe
    return Companion(table.name or kind.table.kind, kind, files, known, frozenset(damaged - files.keys()), funnel)


def notes_on(companion: Companion, names: Sequence[str], probes: Mapping[str, Probe]) -> Iterator[str]:
    """What a person should know of the companions of a dataset whose files have these names; `probes` are of the samples."""
    funnel = companion.funnel
    head = f"{companion.role} in dataset {companion.name!r}: {funnel.counts('readable')}"
    yield "; ".join([head, *(line.strip() for line in funnel.told_losses()), *_some(funnel.notes)])
    idle = sorted(companion.files.keys() - set(map(stem_of, names)))
    if idle:
        files = [os.path.basename(companion.files[stem]) for stem in idle[:EXAMPLES]]
        yield f"{len(idle)} files of {companion.name!r} belong to no sample ({', '.join(files)}{', ...' if len(idle) > EXAMPLES else ''})"
    other = [name for name, probe in probes.items() if _differs(probe, companion.probes.get(stem_of(name)))]
    if other:
        one, its = probes[other[0]], companion.probes[stem_of(other[0])]
        yield (
            f"{len(other)} samples have a {companion.role} of another shape, which is {companion.kind.fitting} "
            f"({other[0]}: {one.width}x{one.height}, its {companion.role} {its.width}x{its.height})"
        )


def _some(notes: Sequence[str]) -> Iterator[str]:
    yield from notes[:EXAMPLES]
    if len(notes) > EXAMPLES:
        yield f"and {len(notes) - EXAMPLES} more notes"


def _differs(probe: Probe, other: Probe | None) -> bool:
    if other is None or not (probe.height and other.height and probe.width and other.width):
        return False
    ratio = probe.width * other.height / (probe.height * other.width)
    return not 1 / SHAPE <= ratio <= SHAPE

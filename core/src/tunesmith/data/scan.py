"""From the tables of a config to its datasets: which files can be trained on, with which captions and companions."""

from __future__ import annotations

import gc
import hashlib
import heapq
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.datasets import DatasetTable, SampleTable
from ..config.tables import RunTable, as_stem
from ..errors import InputError, TunesmithError
from ..family import Family
from ..hooks import blamed_on
from ..kinds import Kind, KindPlugin, Piece, Probe, Unfit, Unreadable, blame_kind
from ..listing.files import list_files
from ..listing.index import Index, NoText
from ..plugin import Plugin
from ..randomness import position_seed
from ..sources import Entry, Listing, SourcePlugin
from .captions import Captions, NoCaption, beside
from .dataset import Dataset, Sample
from .funnel import Funnel
from .pairing import Companion, Unpaired, companion_of, notes_on
from .pictures import CORE_KINDS

SOURCES = "sources"
"""Folder below the cache for files from elsewhere."""
TEXTS = 50_000
"""Caption files that are read together."""
COLLECTED = (50_000, 50, 1000)
"""What is made anew before Python looks for garbage in it; and how often that is before it looks at the rest, and at all."""


@dataclass(frozen=True)
class Surroundings:
    """What datasets are looked at with. `plugins` are those that bring kinds and list files, by name."""

    family: Family
    run: RunTable
    index: Index
    plugins: Mapping[str, Plugin[Any]] = field(default_factory=dict)

    def kind_type(self, table: DatasetTable) -> type[Kind[Any]]:
        """The class of a table's kind."""
        brought = self.plugins.get(table.kind)
        return brought.kind if isinstance(brought, KindPlugin) else CORE_KINDS[table.kind]

    def kind(self, table: DatasetTable) -> Kind[Any]:
        """The kind of a table's dataset; InputError if the family cannot be trained on it."""
        kind = self.kind_type(table)
        if kind.modalities and self.family.modality not in kind.modalities:
            made = f"generates {self.family.modality.value}s"
            raise InputError(f"kind = {table.kind!r}: {self.family.name} {made} and cannot be trained on datasets of this kind")
        return kind(table, self.family)

    def listing(self, table: DatasetTable, kind: Kind[Any], funnel: Funnel) -> Listing:
        """The files of a table's dataset; those from elsewhere are kept below the cache, by where they come from."""
        brought = self.plugins.get(str((table.source or {}).get("plugin")))
        origin = table.path or json.dumps(table.source, sort_keys=True, default=str)
        digest = hashlib.blake2b(origin.encode(errors="surrogateescape"), digest_size=6).hexdigest()
        folder = self.run.cache_dir / SOURCES / f"{as_stem(table.named().name or '', 'dataset')}-{digest}"
        with blamed_on(brought.name, "listing") if brought is not None else nullcontext():
            return list_files(table, kind, folder, funnel, brought if isinstance(brought, SourcePlugin) else None)


def survey_all(tables: Sequence[DatasetTable], around: Surroundings) -> tuple[dict[int, Dataset], list[tuple[int, InputError]]]:
    """The datasets with samples of their own, by the numbers of their tables, and what is wrong with those that cannot be had.

    Whether there are whole batches is not looked at.
    """
    hosts = {table.named().name: table for table in tables if table.host is None}
    companions: dict[str, dict[str, Companion]] = {}
    found: dict[int, Dataset] = {}
    wrong: list[tuple[int, InputError]] = []
    for number, table in sorted(enumerate(tables), key=lambda one: one[1].host is None):  # companions come first
        host = table.host
        try:
            if host is not None:
                companion = look_for_companions(table, hosts[host], around)
                companions.setdefault(host, {})[companion.role] = companion
            elif isinstance(table, SampleTable):
                found[number] = look_for_samples(table, around, companions.get(table.name or "", {}))
        except InputError as error:
            wrong.append((number, error))
    return dict(sorted(found.items())), sorted(wrong, key=lambda one: one[0])


def survey(table: SampleTable, family: Family, run: RunTable, kind: Kind[Any] | None = None) -> Dataset:
    """The dataset of one table, even if it yields no batch; InputError if there is nothing to list. Nothing is remembered."""
    with Index(None) as index:
        return look_for_samples(table, Surroundings(family, run, index), {}, kind)


def scan(table: SampleTable, family: Family, run: RunTable, kind: Kind[Any] | None = None) -> Dataset:
    """The same; InputError with the funnel and remedies if it yields no whole batch."""
    dataset = survey(table, family, run, kind)
    dataset.require_batches()
    return dataset


def look_for_companions(table: DatasetTable, host: DatasetTable, around: Surroundings) -> Companion:
    """The files of a dataset that belongs to `host`; InputError if there is nothing to list."""
    kind = around.kind(table).serving(around.kind_type(host)(host, around.family))
    funnel = Funnel(table.named().name or "dataset")
    listing = around.listing(table, kind, funnel)
    probes = around.index.probed(kind, [entry.where for entry in listing.entries])
    return companion_of(table, kind, listing.entries, probes, funnel)


@contextmanager
def collecting_less() -> Iterator[None]:
    """Python looks for garbage seldom: it would go through all samples again and again, which are none, a third of the time."""
    usual = gc.get_threshold()
    gc.set_threshold(*COLLECTED)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@collecting_less()
def look_for_samples(
    table: SampleTable, around: Surroundings, companions: Mapping[str, Companion], kind: Kind[Any] | None = None
) -> Dataset:
    """The dataset of a table with those that belong to it, by role; InputError if there is nothing to list."""
    kind = kind or around.kind(table)
    funnel = Funnel(table.named().name or "dataset")
    kind.beside = {role: companion.probes for role, companion in companions.items()}
    listing = around.listing(table, kind, funnel)
    scanner = _Scanner(table, kind, funnel, companions)
    samples = scanner.samples(listing, around.index)
    chosen = _chosen(samples, table.max_samples, funnel)
    funnel.notes += scanner.captions.notes()
    probes = {sample.name: sample.probe for sample in chosen} if companions or type(kind).remarks is not Kind.remarks else {}
    funnel.notes += kind.remarks(probes)
    for companion in companions.values():
        funnel.notes += notes_on(companion, [entry.name for entry in listing.entries], probes)
    return Dataset(table, kind, funnel.dataset, table.batch_size or around.run.batch_size, chosen, funnel, companions)


class _Scanner:
    """Makes samples of files and tells the funnel what it leaves out."""

    def __init__(self, table: SampleTable, kind: Kind[Any], funnel: Funnel, companions: Mapping[str, Companion]) -> None:
        self.kind = kind
        self.funnel = funnel
        self.companions = companions
        self.captions = Captions(table)
        self._pieces: dict[tuple[Piece, ...], tuple[Piece, ...]] = {}
        if companions:
            funnel.unused.discard("paired")

    def samples(self, listing: Listing, index: Index) -> list[Sample]:
        """The usable files, in the order of their names."""
        probes = index.probed(self.kind, [entry.where for entry in listing.entries])
        readable: list[tuple[Entry, Probe]] = []
        for entry, probe in zip(listing.entries, probes, strict=True):
            if isinstance(probe, Unreadable):
                self.funnel.lose("readable", probe.reason, entry.name)
            else:
                readable.append((entry, probe))
        if any(probe.seconds or probe.frames != 1 for _, probe in readable):
            self.funnel.unused.discard("timed")
        texts = self._texts([entry for entry, _ in readable], listing.homes, index)
        found: list[Sample] = []
        for (entry, probe), text in zip(readable, texts, strict=True):
            try:
                found += self._samples(entry, probe, text)
            except NoCaption as error:
                self.funnel.lose("captioned", str(error), entry.name)
            except Unpaired as error:
                self.funnel.lose("paired", str(error), entry.name)
            except Unfit as error:
                self.funnel.lose(error.station, error.reason, f"{entry.name} {error.detail}".rstrip())
        return found

    def _texts(self, entries: Sequence[Entry], homes: Sequence[Path], index: Index) -> Iterator[str | NoText | None]:
        """What stands in the files beside the samples, if the captions are there; not all of them are in memory at once."""
        ending = self.captions.ending
        if ending is None:
            yield from itertools.repeat(None, len(entries))
            return
        for start in range(0, len(entries), TEXTS):
            yield from index.texts([beside(entry.where, ending) for entry in entries[start : start + TEXTS]], homes)

    def _samples(self, entry: Entry, probe: Probe, text: str | NoText | None) -> list[Sample]:
        """The samples of one file, which share what they have in common."""
        if isinstance(text, NoText):
            raise NoCaption(text.reason)
        captions = self.captions.of(entry.name, entry.columns, text)
        pairs = [(role, companion.of(entry.name)) for role, companion in self.companions.items()]
        given = tuple((role, file) for role, file in pairs if file is not None)
        try:
            made = self.kind.pieces(probe, entry.name)
        except TunesmithError:
            raise
        except Exception as error:
            blame_kind(error, self.kind.table.kind, "pieces", entry.where)
            raise
        pieces = self._pieces.setdefault(made, made)
        if len(pieces) == 1:
            return [Sample(entry.where, entry.name, captions, probe, pieces[0], given)]
        self.funnel.more += len(pieces) - 1
        names = [entry.name, *(f"{entry.name}#{number}" for number in range(2, len(pieces) + 1))]
        return [Sample(entry.where, name, captions, probe, piece, given) for name, piece in zip(names, pieces, strict=True)]


def _chosen(samples: list[Sample], wanted: int | None, funnel: Funnel) -> list[Sample]:
    """So many of the samples, by the dataset's name and their own: whichever others come or go, most stay."""
    if wanted is None or wanted >= len(samples):
        return samples
    ranked = ((position_seed(0, "max_samples", funnel.dataset, sample.name), number) for number, sample in enumerate(samples))
    numbers = sorted(number for _, number in heapq.nsmallest(wanted, ranked))
    funnel.more -= len(samples) - wanted
    funnel.notes.append(f"max_samples = {wanted}: of {len(samples)} samples so many are taken, chosen by the dataset's name")
    return [samples[number] for number in numbers]

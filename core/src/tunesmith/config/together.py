"""What datasets must agree on among themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..words import nearest
from .datasets import DatasetTable, SampleTable
from .lines import Key

Complaint = tuple[int, Key, str]
"""The dataset's number, the key in its table, and what is wrong."""


def together(tables: Mapping[int, DatasetTable]) -> Iterator[Complaint]:
    """What is wrong with the tables of a config, each by its number, that are right by themselves."""
    yield from _same_names(tables)
    yield from _companions(tables)
    samples = {number: table for number, table in tables.items() if isinstance(table, SampleTable) and belongs_to(table) is None}
    if tables and not samples:
        number = next(iter(tables))
        yield number, (), "belongs to another dataset, and there is none with samples of its own"
    yield from _weights(samples)
    if samples and not any(table.start_step == 0 for table in samples.values()):
        number = min(samples, key=lambda one: samples[one].start_step)
        yield number, ("start_step",), "no dataset is there at the first step; let one have start_step = 0"


def belongs_to(table: DatasetTable) -> str | None:
    """The name of the dataset that this one's files are companions of, or None."""
    return getattr(table, "of", None)


def _same_names(tables: Mapping[int, DatasetTable]) -> Iterator[Complaint]:
    """Names are file names, so case does not count."""
    first: dict[str, int] = {}
    for number, table in tables.items():
        name = table.name or ""
        earlier = first.setdefault(name.lower(), number)
        if earlier != number:
            yield number, ("name",), f"name {name!r} is taken by dataset number {earlier + 1}; set name = ... to tell them apart"


def _companions(tables: Mapping[int, DatasetTable]) -> Iterator[Complaint]:
    names = [table.name or "" for table in tables.values() if belongs_to(table) is None]
    taken: dict[tuple[str, str], int] = {}
    for number, table in tables.items():
        of = belongs_to(table)
        if of is None:
            continue
        if of not in names:
            near = nearest(of, names)
            yield (
                number,
                ("of",),
                f"of = {of!r}: there is no dataset of that name with samples of its own" + (f"; did you mean {near!r}?" if near else ""),
            )
        earlier = taken.setdefault((table.kind, of), number)
        if earlier != number:
            yield number, ("of",), f"dataset {of!r} has its {table.kind} dataset already, number {earlier + 1}"


def _weights(samples: Mapping[int, SampleTable]) -> Iterator[Complaint]:
    without = [number for number, table in samples.items() if table.weight is None]
    if without and len(without) < len(samples):
        yield without[0], (), "has no `weight`, but another dataset has; give every dataset one, or none"

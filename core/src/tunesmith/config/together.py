"""What datasets must agree on among themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..words import nearest
from .datasets import DatasetTable, SampleTable
from .lines import Key
from .tables import MOST_STEPS, RunTable

Complaint = tuple[int, Key, str]
"""The dataset's number, the key in its table, and what is wrong."""


def together(tables: Mapping[int, DatasetTable], run: RunTable | None) -> Iterator[Complaint]:
    """What is wrong with the tables of a config, each by its number, that are right by themselves; `run` is None if it is not."""
    yield from _same_names(tables)
    yield from _companions(tables)
    samples = {number: table for number, table in tables.items() if isinstance(table, SampleTable) and table.host is None}
    if tables and not samples:
        number = next(iter(tables))
        yield number, (), "belongs to another dataset, and there is none with samples of its own"
    yield from _weights(samples)
    yield from _presence(samples, run)


def _same_names(tables: Mapping[int, DatasetTable]) -> Iterator[Complaint]:
    """Names are file names, so case does not count."""
    first: dict[str, int] = {}
    for number, table in tables.items():
        name = table.name or ""
        earlier = first.setdefault(name.lower(), number)
        if earlier != number:
            yield number, ("name",), f"name {name!r} is taken by dataset number {earlier + 1}; set name = ... to tell them apart"


def _companions(tables: Mapping[int, DatasetTable]) -> Iterator[Complaint]:
    names = [table.name or "" for table in tables.values() if table.host is None]
    taken: dict[tuple[str, str], int] = {}
    for number, table in tables.items():
        of = table.host
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


def _presence(samples: Mapping[int, SampleTable], run: RunTable | None) -> Iterator[Complaint]:
    """Datasets may come and go, as long as there is one at every step."""
    if run is not None and run.epochs is not None:
        for number, table in samples.items():
            for key in ("start_step", "end_step"):
                if key in table.model_fields_set:
                    yield (
                        number,
                        (key,),
                        f"{key} counts optimizer steps, and then an epoch has no length; give [run] steps instead of epochs",
                    )
        return
    reached, last = 0, 0
    for number, table in sorted(samples.items(), key=lambda one: (one[1].start_step, one[0])):
        if table.start_step > reached:
            which = f"between step {reached}, where dataset number {last + 1} goes out, and" if reached else "before"
            yield number, ("start_step",), f"no dataset is there {which} step {table.start_step}; at every step there must be one"
        end = MOST_STEPS if table.end_step is None else table.end_step
        if end > reached:
            reached, last = end, number
    if samples and run is not None and run.steps is not None and reached < run.steps:
        yield last, ("end_step",), f"end_step = {reached}: no dataset is there from then on, and the run has {run.steps} steps"

"""The forecast as a plan tells it: for the largest samples of a run, and with a reason where there is none."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from .config import Config
from .config.datasets import SampleTable
from .data.dataset import Dataset
from .family import Family
from .forecast import Forecast, forecast
from .rehearsal import Phase, Size, preview_size
from .session import Assembly

MOST_TOKENS, MOST_SAMPLES = 2**20, 2**12
"""In a batch, and frames of a sample; with more, even shapes alone would take minutes to go through."""


@dataclass(frozen=True)
class Largest:
    """The samples that take the most: their size, and the number of their dataset in the config; None where there are none yet."""

    size: Size
    dataset: int | None = None

    def batch_size(self, config: Config) -> int:
        """How many of them a micro-batch has."""
        table = None if self.dataset is None else config.datasets[self.dataset]
        return (table.batch_size if isinstance(table, SampleTable) else None) or config.run.batch_size


@dataclass(frozen=True)
class PhaseFacts:
    """Bytes on the device in one phase of a run; `activations` come and go, the others are there throughout."""

    name: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


@dataclass(frozen=True)
class MemoryFacts:
    """What a run takes of the device's memory, in bytes, with batches of `batch_size` samples of this size.

    `parameters` are those of the denoiser. Where it cannot be told there are no `phases`, `peak` is None, and `reason` says why.
    `notes` are sentences on what could not be counted.
    """

    parameters: int
    size: Size
    batch_size: int
    phases: list[PhaseFacts]
    peak: int | None
    reason: str | None
    notes: list[str] = field(default_factory=list)


def largest_samples(family: Family, datasets: dict[int, Dataset], config: Config) -> Largest:
    """Those of the bucket that is trained with the most tokens in a batch; of the family's own size where there are none."""
    found = [
        Largest(Size(frames, height, width), number)
        for number, dataset in datasets.items()
        for width, height, frames in dataset.buckets
        if width and dataset.funnel.batches
    ]
    if not found:
        width, height = family.defaults.size
        return Largest(Size(family.round_frames(family.defaults.frames), height, width))
    return max(found, key=lambda one: (one.batch_size(config) * _tokens(family, one.size), one.size.frames, one.size.height))


def foretell(config: Config, cast: Assembly, largest: Largest) -> Forecast:
    """The forecast for these samples; whatever fails on shapes alone is a reason, such as a plugin that needs values."""
    batch_size = largest.batch_size(config)
    preview = preview_size(config, cast.family)
    tokens = max(batch_size * _tokens(cast.family, largest.size), _tokens(cast.family, preview))
    if tokens > MOST_TOKENS or max(batch_size, largest.size.frames, preview.frames) > MOST_SAMPLES:
        return Forecast(largest.size, (), f"batches or samples of validation are larger than any device takes: up to {tokens} tokens")
    run = config.run.model_copy(update={"batch_size": batch_size})
    try:
        with _young_objects_alone():
            return forecast(replace(config, run=run), cast, largest.size)
    except Exception as error:  # the code of plugins and libraries may fail in any way on what has no values; the plan is told all the same
        where = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        told = (str(error).splitlines() or [""])[0]
        return Forecast(largest.size, (), f"a step cannot be gone through with shapes alone: {type(error).__name__}: {told}{where}")


def facts_of(phases: Sequence[Phase]) -> list[PhaseFacts]:
    """Phases as they are told."""
    return [PhaseFacts(one.name, one.weights, one.gradients, one.optimizer, one.activations, one.peak) for one in phases]


def notes_of(told: Forecast, config: Config) -> list[str]:
    """What a forecast leaves out."""
    if not told.unknown:
        return []
    when = "while the cache is filled" if config.run.cache else "in every step, where samples are encoded"
    one = len(told.unknown) == 1
    lacking = f"{' and '.join(told.unknown)}, whose {'configuration is' if one else 'configurations are'} not on this machine"
    return [f"not counted {when}: {lacking}; a run needs {'it' if one else 'them'}"]


def _tokens(family: Family, size: Size) -> int:
    return family.token_grid(size.frames, size.height, size.width).tokens


@contextmanager
def _young_objects_alone() -> Iterator[None]:
    """Within the context the garbage collector, which a forecast calls often, does not look at what is there already."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

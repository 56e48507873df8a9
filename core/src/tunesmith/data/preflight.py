"""What a run would make of one dataset, as far as it can be told without decoding a file and without weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, get_args

from ..family import Family
from .captions import FILTERED
from .dataset import Bucket, Dataset, Sample
from .funnel import SAMPLES, STATIONS
from .pictures import MASK

MOST_COUNTED = 5000
"""Captions of one dataset whose tokens are counted; of more, so many that are evenly spread."""
EXAMPLES = 3
"""How many samples are named where several are concerned."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class BucketFacts:
    """One bucket: its size, what is in it, and what an epoch takes from it.

    `batches` is 0 where the samples, each as often as it repeats, are too few for one; `left_over` draws are not in an
    epoch's batches, each epoch others. `seconds` is what a clip or a sound lasts, 0 for pictures. Sound alone has a size of 0
    and counts its own samples as frames. `cache_bytes` are those of the latents and of what the family keeps beside them, 0 for
    a bucket without batches.
    """

    width: int
    height: int
    frames: int
    seconds: float
    samples: int
    batches: int
    left_over: int
    cache_bytes: int


@dataclass(frozen=True)
class Retiming:
    """Clips of one rate, and what they become: `frames` frames at `trained_fps`, which are `seconds` of each.

    `shortest` and `longest` count the frames that the whole clips have at `trained_fps`, by their durations.
    """

    source_fps: float
    trained_fps: float
    frames: int
    seconds: float
    samples: int
    shortest: int
    longest: int


@dataclass(frozen=True)
class CaptionFacts:
    """How long the captions are, in tokens as the family's encoder counts them.

    `limit` is what the encoder reads, None where that is not known; of `distinct` captions `counted` were counted, 0 where
    that is not possible on this machine. `too_long` of those lose their end; `examples` name samples with such captions.
    """

    limit: int | None
    distinct: int
    counted: int
    too_long: int
    longest: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class CompanionFacts:
    """A dataset that belongs to another, what it is for that one's samples, and what became of its files."""

    role: str
    name: str
    kind: str
    funnel: dict[str, Any]


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset before a run.

    `share` is the expected part of all batches; `cache_bytes` are those of all its buckets; `stations` are those of the
    funnel at which something of this dataset can be lost.
    """

    name: str
    kind: str
    origin: str
    batch_size: int
    samples_per_step: int
    repeats: int
    variants: int
    batches_per_epoch: int
    share: float
    start_step: int
    end_step: int | None
    is_regularisation: bool
    cache_bytes: int
    stations: tuple[str, ...]
    funnel: dict[str, Any]
    buckets: tuple[BucketFacts, ...]
    retiming: tuple[Retiming, ...]
    captions: CaptionFacts
    companions: tuple[CompanionFacts, ...]
    remedies: tuple[str, ...]


def examine(dataset: Dataset, *, family: Family, share: float, batches_a_step: int, values: int) -> DatasetFacts:
    """The facts of a dataset whose batches are `share` of all, `batches_a_step` of which make a step.

    `values` is how many numbers are cached for each one of a sample's latents.
    """
    table = dataset.table
    buckets = tuple(_buckets(dataset, family, values))
    return DatasetFacts(
        name=dataset.name,
        kind=table.kind,
        origin=_origin(dataset),
        batch_size=dataset.batch_size,
        samples_per_step=dataset.batch_size * batches_a_step,
        repeats=table.repeats,
        variants=dataset.variants,
        batches_per_epoch=dataset.funnel.batches,
        share=share,
        start_step=table.start_step,
        end_step=table.end_step,
        is_regularisation=table.is_regularisation,
        cache_bytes=sum(bucket.cache_bytes for bucket in buckets),
        stations=tuple(station for station in STATIONS if station not in dataset.funnel.unused),
        funnel=dataset.funnel.as_json(),
        buckets=buckets,
        retiming=tuple(_retiming(dataset.samples)),
        captions=_captions(dataset, family),
        companions=tuple(
            CompanionFacts(role, companion.name, companion.kind.table.kind, companion.funnel.as_json())
            for role, companion in dataset.companions.items()
        ),
        remedies=tuple(_remedies(dataset)),
    )


def heavy_loss(dataset: Dataset) -> str | None:
    """A sentence if more than half of what was found is lost, with what lost the most."""
    funnel = dataset.funnel
    files = funnel.passed(STATIONS[SAMPLES - 1])
    samples = files + funnel.more
    kept = files * funnel.passed("batched") / (funnel.total * samples) if samples else 0.0
    if not funnel.total or kept >= 0.5:
        return None
    worst = max(funnel.losses, key=lambda one: one.count)
    return f"dataset {dataset.name!r} loses {1 - kept:.0%} of what was found, above all {worst}"


def _origin(dataset: Dataset) -> str:
    """Where the files come from, as the table says."""
    if dataset.table.path is not None:
        return dataset.table.path
    source = dataset.table.source or {}
    settings = ", ".join(
        f"{key} = {(str(value) if isinstance(value, PurePath) else value)!r}"
        for key, value in source.items()
        if key != "plugin" and value is not None
    )
    return f"{source.get('plugin')}: {settings}"


def _counts(dataset: Dataset) -> Mapping[Bucket, int]:
    """How many samples there are of each size, in buckets or in too small ones."""
    counts: dict[Bucket, int] = {}
    for sample in dataset.samples:
        counts[sample.bucket] = counts.get(sample.bucket, 0) + 1
    return dict(sorted(counts.items()))


def _buckets(dataset: Dataset, family: Family, values: int) -> Iterator[BucketFacts]:
    rates = {sample.bucket: sample.piece.fps for sample in dataset.samples}
    for bucket, count in _counts(dataset).items():
        width, height, frames = bucket
        batches = dataset.batches_of(count) if bucket in dataset.buckets else 0
        left = max(0, count * dataset.table.repeats - batches * dataset.batch_size)
        kept = FLOAT_BYTES * _values(dataset, family, bucket, values) if batches else 0
        seconds = frames / rates[bucket] if rates[bucket] else 0.0
        yield BucketFacts(width, height, frames, seconds, count, batches, left, dataset.variants * kept)


def _values(dataset: Dataset, family: Family, bucket: Bucket, values: int) -> int:
    """How many values are cached of a bucket's samples; a window that is drawn counts as in the middle of where it may lie."""
    width, height, frames = bucket
    spreads = (values - 1) * math.prod(family.latent_shape(frames, height, width))
    pieces = (dataset.samples[index].piece for index in dataset.buckets[bucket])
    befores = Counter(round((piece.start + piece.room / 2) * piece.fps) if family.history else 0 for piece in pieces)
    return sum(count * (family.cached_values(frames, height, width, before) + spreads) for before, count in befores.items())


def _retiming(samples: Sequence[Sample]) -> Iterator[Retiming]:
    groups: dict[tuple[float, float, int], list[int]] = {}
    for sample in samples:
        piece = sample.piece
        if piece.fps and sample.probe.fps:
            last = sample.probe.seconds - 0.5 / sample.probe.fps  # the last source frame's own time
            whole = max(1, math.floor(last * piece.fps + 1e-6) + 1)
            groups.setdefault((round(sample.probe.fps, 3), piece.fps, piece.frames), []).append(whole)
    for (source_fps, fps, frames), wholes in sorted(groups.items()):
        yield Retiming(source_fps, fps, frames, frames / fps, len(wholes), min(wholes), max(wholes))


def _captions(dataset: Dataset, family: Family) -> CaptionFacts:
    owners: dict[str, str] = {}
    for indexes in dataset.buckets.values():
        for index in indexes:
            sample = dataset.samples[index]
            for caption in sample.captions:
                owners.setdefault(caption, sample.name)
    captions = list(owners)
    chosen = captions[:: -(-len(captions) // MOST_COUNTED)] if captions else []
    limit = family.caption_tokens
    lengths = family.count_tokens(chosen) if chosen and limit is not None else None
    if lengths is None or limit is None:
        return CaptionFacts(limit, len(captions), 0, 0, 0, ())
    too_long = [owners[caption] for caption, length in zip(chosen, lengths, strict=True) if length > limit]
    return CaptionFacts(limit, len(captions), len(chosen), len(too_long), max(lengths), tuple(too_long[:EXAMPLES]))


def _remedies(dataset: Dataset) -> Iterator[str]:
    """What gives back what is lost, with numbers."""
    small = [count for bucket, count in _counts(dataset).items() if bucket not in dataset.buckets]
    if small:
        repeats = -(-dataset.batch_size // min(small))
        fitting = min(small) * dataset.table.repeats
        which = "the bucket that is" if len(small) == 1 else f"all {len(small)} buckets that are"
        yield (
            f"`repeats = {repeats}`, `batch_size = {fitting}` or `oversubscribe = true` in its table keeps {which} "
            f"too small for a batch of {dataset.batch_size} (samples: {sum(small)})"
        )
        some = -(-dataset.batch_size // max(small))
        if some < repeats:
            yield f"`repeats = {some}` keeps the larger of these buckets, up to {max(small)} samples each"
    losses = dataset.funnel.losses
    bare = sum(loss.count for loss in losses if loss.station == "captioned" and loss.reason != FILTERED)
    if bare and dataset.table.captions == "textfile":
        yield (
            f"files without a caption: {bare}; write one into a .txt file of the same name beside each, or take the "
            'file names with `captions = "filename"`'
        )
    for companion in dataset.companions.values():
        gone = sum(loss.count for loss in losses if loss.reason == companion.absence)
        setting = type(companion.kind.table).model_fields.get("missing")
        allowed = [value for value in get_args(setting.annotation) if value != "skip"] if setting is not None else []
        if gone and allowed:
            effect = "lets those without a mask count in full" if companion.role == MASK else "lets those without take part"
            told = f'`missing = "{allowed[0]}"` in the table of {companion.name!r} {effect}'
            yield f"files without {companion.role} of their name: {gone}; {told}"
    if not dataset.funnel.total:
        endings = ", ".join(sorted(dataset.kind.suffixes))
        yield f"nothing was found: put files that end in {endings} into {_origin(dataset)}, or correct its path"

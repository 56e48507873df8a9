"""Encoding: what a batch to encode is made of, what its values are, and which keys they have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from ..batch import Batch, Caption, Field, FieldValue, Ragged, Source
from ..cache.store import Store, caption_key, sample_key
from ..data.dataset import Dataset
from ..errors import RunFailed

if TYPE_CHECKING:
    from ..run import Run

Inputs: TypeAlias = dict[str, Tensor]


def read_caption_fields(run: Run, cache: Store | None, fields: Sequence[Field], caption: Caption) -> dict[str, FieldValue]:
    """The fields of one caption for a batch of one, on the CPU; encoded now if there is no cache, or it lacks them."""
    wanted = [field for field in fields if not field.per_sample]
    keys = {field.key: caption_key(field, caption) for field in wanted}
    there = {} if cache is None else cache.get_many(keys.values())
    lacks = [field for field in wanted if keys[field.key] not in there]
    if lacks:
        encoded = encode(run, Batch(captions=(caption,), wanted=frozenset(field.key for field in lacks)))
        for field in lacks:
            [there[keys[field.key]]] = values_of(field, encoded, [named(caption)])
        if cache is not None:
            for field in lacks:
                cache.put(keys[field.key], there[keys[field.key]], field.key)
    return {field.key: collate(field, [there[keys[field.key]]]) for field in wanted}


def needs_of(fields: Iterable[Field], dataset: Dataset) -> tuple[str, ...]:
    """The inputs that these fields of a dataset's samples are made of, once each."""
    return tuple(dict.fromkeys(need for field in fields if field.per_sample for need in _given(field, dataset)))


def _given(field: Field, dataset: Dataset) -> Sequence[str]:
    """What a field needs, without what the dataset does not give and the field may lack."""
    return [need for need in field.needs if dataset.gives(need)] if field.may_lack else field.needs


def batch_of(sources: Sequence[Source], inputs: Sequence[Mapping[str, Tensor]], wanted: Iterable[str]) -> Batch:
    """A batch of sources whose inputs were decoded."""
    stacked = {need: torch.stack([of_source[need] for of_source in inputs]) for need in inputs[0]}
    return Batch(tuple(sources), tuple(source.caption for source in sources), stacked, wanted=frozenset(wanted))


def encode(run: Run, batch: Batch) -> Batch:
    """What the chain of encoders makes of the batch, on the run's device."""
    with torch.no_grad():
        return run.hooks.encode_batch(run, batch.to(run.device))


def collate(field: Field, values: Sequence[Tensor]) -> FieldValue:
    """One field of a batch from the values of its samples."""
    return Ragged(values) if field.ragged else torch.stack(list(values))


def named(item: Source | Caption) -> str:
    """A sample or a caption as messages name it."""
    return f"caption {item.text!r}" if isinstance(item, Caption) else str(item)


def values_of(field: Field, batch: Batch, names: Sequence[str]) -> list[Tensor]:
    """A field's value for each sample, on the CPU; RunFailed if one is not finite."""
    value = batch.ragged(field.key).values if field.ragged else batch.tensor(field.key)
    if len(value) != len(names):
        raise RuntimeError(f"encode_batch made {len(value)} values of field {field.key!r} for {len(names)} samples")
    values = [one.detach().cpu().contiguous() for one in value]
    for one, name in zip(values, names, strict=True):
        if one.is_floating_point() and not torch.isfinite(one).all():
            raise RunFailed(
                f"{field.key!r} of {name} is not finite, and it was not stored: the encoder overflows in its precision, "
                "or the input is damaged; use bf16 or fp32 for the encoder, or take the file out"
            )
    return values


def files_of(dataset: Dataset, field: Field, source: Source) -> list[Path]:
    """The files that a sample's field is made of, its own first."""
    further = [file for need in _given(field, dataset) for file in dataset.files(source, need)]
    return [source.file, *further, *(field.companions(source) if field.companions is not None else ())]


def key_of(dataset: Dataset, field: Field, source: Source, content: Callable[[Path], str]) -> str:
    """The key of a sample's field; `content` tells the hash of a file."""
    recipe = " ".join(dataset.recipe(need) for need in _given(field, dataset))
    return sample_key(field, recipe, " ".join(map(content, files_of(dataset, field, source))), source.crop, source.window)


def shape_of(source: Source) -> tuple[object, ...]:
    """What sources have in common that can be one batch, whatever their datasets."""
    window = source.window
    return (source.dataset, source.crop.size, None if window is None else (window.frames, window.fps))

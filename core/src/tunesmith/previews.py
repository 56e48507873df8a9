"""What validation is to make: prompts, samples with files, and samples of the datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .batch import AUDIO, PIXELS, Caption, Source, Window
from .config.tables import as_stem
from .data.geometry import center_crop, covering
from .data.given import CONTROL, REFERENCE
from .data.images import probe
from .hooks import blamed_on
from .kinds import Unreadable
from .media import MediaReader, MediaWriter, Wanted, read_image, write_image

if TYPE_CHECKING:
    from .config import Config
    from .data.dataset import Dataset, Sample
    from .family import Family
    from .plugin import Plugin

Complaint = tuple[tuple[str | int, ...], str]
MADE_FROM = {REFERENCE: "a picture", AUDIO: "sound", CONTROL: "a clip that guides"}
"""What a family may take beside a prompt, in words."""


@dataclass(frozen=True)
class Given:
    """Something beside a prompt: the file that it comes of, and what reads it."""

    file: Path
    read: Callable[[Wanted], Tensor]


@dataclass(frozen=True)
class Preview:
    """One thing to make: its name, its prompt, and the rest that is given, by what it is given as."""

    name: str
    prompt: str
    given: Mapping[str, Given]


def previews(config: Config, datasets: Iterable[Dataset], plugins: Iterable[Plugin[Any]], family: Family) -> list[Preview]:
    """What `[validation]` asks for, in its order: prompts, samples, and the first samples of each dataset."""
    readers = media_readers(plugins)
    made = [Preview(name, prompt, {}) for name, prompt in config.prompts.items()]
    for sample in config.validation.samples:
        given = {what: Given(file, partial(readers[what].read, file)) for what, file in sample.given.items()}
        made.append(Preview(sample.name, sample.prompt, given))
    taken = {preview.name.lower() for preview in made}
    for dataset in datasets:
        for one in dataset.samples[: config.validation.dataset_samples]:
            name = _free(as_stem(f"{dataset.name}-{Path(one.name).with_suffix('')}", "sample"), taken)
            made.append(Preview(name, one.captions[0], _of_dataset(dataset, one, family)))
    return made


def count_previews(config: Config, datasets: Iterable[Dataset]) -> int:
    """How many there are, without reading anything."""
    of_datasets = sum(min(config.validation.dataset_samples, len(dataset.samples)) for dataset in datasets)
    return len(config.prompts) + len(config.validation.samples) + of_datasets


def captions(config: Config, made: Iterable[Preview]) -> list[Caption]:
    """Every text that validation needs encoded: the prompts, and the negative prompt."""
    prompts = dict.fromkeys(preview.prompt for preview in made)
    negative = Caption(config.validation.negative_prompt, negative=True)
    return [*map(Caption, prompts), negative] if prompts else []


def media_readers(plugins: Iterable[Plugin[Any]]) -> dict[str, MediaReader]:
    """Readers by what they give: the core's for pictures, and those that plugins bring."""
    readers: dict[str, MediaReader] = {REFERENCE: MediaReader(read_image, probe)}
    for plugin in plugins:
        with blamed_on(plugin.name, "media_readers"):
            readers.update(plugin.media_readers())
    return readers


def media_writers(plugins: Iterable[Plugin[Any]]) -> dict[str, MediaWriter]:
    """Writers by kind of media: the core's for images, and those that plugins bring."""
    writers: dict[str, MediaWriter] = {"image": write_image}
    for plugin in plugins:
        with blamed_on(plugin.name, "media_writers"):
            writers.update(plugin.media_writers())
    return writers


def complaints(config: Config, family: Family, plugins: Sequence[Plugin[Any]]) -> Iterator[Complaint]:
    """What `[validation]` asks for and the family, or the plugins that are active, cannot do."""
    table = config.validation
    readers, writers = media_readers(plugins), media_writers(plugins)
    if (config.prompts or table.samples or table.dataset_samples) and family.makes not in writers:
        yield (
            ("validation",),
            f"{family.name} makes media of kind {family.makes!r}, which no active plugin writes; "
            "switch one on that does, by its table (`tune plugins` lists them)",
        )
    required = [what for what, must in family.takes.items() if must]
    if config.prompts and required:
        yield ("validation", "prompts"), f"{_lacks(family, required)}: write [[validation.samples]] instead of prompts, or dataset_samples"
    for number, sample in enumerate(table.samples):
        place, told = ("validation", "samples", number), f"number {number + 1}, {sample.name!r}"
        lacks = [what for what in required if what not in sample.given]
        if lacks:
            yield place, f"{told}: {_lacks(family, lacks)}: add {' and '.join(f'{what} = FILE' for what in lacks)}"
        for what, file in sample.given.items():
            yield from (((*place, what), f"{told}: {sentence}") for sentence in _wrongly_given(what, file, family, readers))
    if table.num_frames is not None and family.round_frames(table.num_frames) != table.num_frames:
        rounded = family.round_frames(table.num_frames)
        yield ("validation", "num_frames"), f"num_frames = {table.num_frames}: {family.name} makes no such number of frames; use {rounded}"


def _lacks(family: Family, lacks: Iterable[str]) -> str:
    return f"{family.name} makes a sample of {' and '.join(MADE_FROM[what] for what in lacks)} beside the prompt"


def _wrongly_given(what: str, file: Path, family: Family, readers: Mapping[str, MediaReader]) -> Iterator[str]:
    if what not in family.takes:
        takes = ", ".join(family.takes) or "nothing"
        yield f"{family.name} takes no {what} beside a prompt; it takes {takes}; take this out"
    elif what not in readers:
        yield f"no active plugin reads {MADE_FROM[what]} from a file; switch one on that does, by its table (`tune plugins` lists them)"
    elif not file.is_file():
        yield f"there is no file {str(file)!r}; paths start at the config file"
    else:
        try:
            readers[what].probe(file)
        except Unreadable as error:
            yield f"{what} = {str(file)!r} cannot be used as {MADE_FROM[what]}: {error.reason}; give another file"


def _of_dataset(dataset: Dataset, sample: Sample, family: Family) -> dict[str, Given]:
    """What is given with a sample of a dataset as it is in training, as far as the family takes it and the dataset has it.

    Its own first frame stands in for a reference picture where the family must have one, or is trained with it given.
    """
    source = dataset.source(sample, Caption(sample.captions[0]), dataset.part(sample, None))
    beside, first = dataset.gives(REFERENCE), family.takes.get(REFERENCE) or dataset.table.gives_first_frame
    needs = {REFERENCE: REFERENCE if beside else PIXELS if first else None, AUDIO: AUDIO, CONTROL: CONTROL}
    return {
        what: Given(next(iter(dataset.files(source, need)), source.file), partial(_load, dataset, source, need))
        for what, need in needs.items()
        if need is not None and what in family.takes and dataset.gives(need)
    }


def _load(dataset: Dataset, source: Source, need: str, wanted: Wanted) -> Tensor:
    """An input of a sample, of the wanted size and rate; of the pixels of a clip its first frame."""
    value = dataset.load(source if need == AUDIO else _as_wanted(source, wanted), need)
    return value[:, 0].clone() if need == PIXELS and value.ndim == 4 else value


def _as_wanted(source: Source, wanted: Wanted) -> Source:
    """A sample at another size, cut from the middle of its whole picture, and its window at another rate."""
    size, crop, window = (wanted.width, wanted.height), source.crop, source.window
    if crop.size != size:
        crop = center_crop(covering(crop.resize, size))
    if window is not None and window.fps != wanted.fps:
        window = Window(window.start, int((window.frames - 1) / window.fps * wanted.fps + 1e-6) + 1, wanted.fps)
    return replace(source, crop=crop, window=window)


def _free(name: str, taken: set[str]) -> str:
    """A name that is not taken yet; it is then."""
    candidates = chain([name], (f"{name}-{number}" for number in range(2, len(taken) + 3)))
    free = next(candidate for candidate in candidates if candidate.lower() not in taken)
    taken.add(free.lower())
    return free

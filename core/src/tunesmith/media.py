"""What validation makes: pictures and clips, each with its whole recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .batch import Caption, Crop, FieldValue, Source
from .data.images import load_pixels, probe


@dataclass(frozen=True)
class SampleRequest:
    """One picture or clip to make: the prompt, its encoded conditions, what else is given, and how to sample.

    `conditions` holds the fields that the family wrote for the prompt, `negative` those of the negative prompt, each
    for a batch of one. `given` has what the family takes besides, in [-1, 1]: `reference` [3, H, W] of its own size,
    `audio` [channels, samples] as the family's `sound` says, `control` [3, F, height, width] at `fps`. `frames` is a
    number that the family can encode. `scheduler` None means the family's own; otherwise it names a diffusers
    scheduler class, or one by a name that the family knows.
    """

    name: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    frames: int
    guidance: float
    steps: int
    seed: int
    scheduler: str | None
    conditions: Mapping[str, FieldValue]
    negative: Mapping[str, FieldValue]
    fps: float = 1.0
    given: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Clip:
    """The content of media of the kind `clip`: frames uint8 [F, H, W, 3], with sound [channels, samples] in [-1, 1] or without.

    The sound begins with the first frame. It may be shorter than the frames; writers cut off what is longer.
    """

    frames: Tensor
    fps: float
    audio: Tensor | None = None
    sample_rate: int = 0


@dataclass(frozen=True)
class Media:
    """Something to look at or listen to; `kind` chooses the writer, `content` is what that writer takes."""

    kind: str
    name: str
    content: Any
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """What one validation has made so far."""

    step: int
    media: list[Media] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, media: Media) -> None:
        """Put a picture or clip into the report."""
        self.media.append(media)

    def measure(self, name: str, value: float) -> None:
        """Put a number into the report; ValueError if the name was used."""
        if name in self.metrics:
            raise ValueError(f"metric {name!r} was already reported")
        self.metrics[name] = value


class MediaWriter(Protocol):
    """Writes media of one kind below a folder and returns the files it made."""

    def __call__(self, media: Media, folder: Path) -> list[Path]: ...


@dataclass(frozen=True)
class Wanted:
    """How what is given to a sample is to be read: at the sample's size and frames a second, and with its sound's rate and channels."""

    width: int
    height: int
    fps: float
    sample_rate: int
    channels: int


@dataclass(frozen=True)
class MediaReader:
    """Reads files that are given to a sample: `read` all of one, in [-1, 1], `probe` its header; both raise Unreadable.

    A picture is [3, H, W] of its own upright size, sound [channels, samples] as wanted, a film [3, F, height, width] as
    wanted: cut from the middle of what just covers it. `probe` is called before a run, on every file, and decodes nothing.
    """

    read: Callable[[Path, Wanted], Tensor]
    probe: Callable[[Path], object]


def read_image(file: Path, wanted: Wanted) -> Tensor:
    """A picture's pixels, upright and whole."""
    size = probe(file)
    return load_pixels(Source("", file, Caption(""), Crop(size, size, (0, 0))))


def write_image(media: Media, folder: Path) -> list[Path]:
    """Write a Pillow image as PNG whose text entry `tunesmith` holds the recipe as JSON."""
    image: Image = media.content
    info = PngInfo()
    info.add_itxt("tunesmith", json.dumps(dict(media.recipe), default=str))
    path = folder / f"{media.name}.png"
    image.save(path, pnginfo=info)
    return [path]

"""What validation makes: pictures and clips, each with its whole recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from .batch import FieldValue


@dataclass(frozen=True)
class SampleRequest:
    """One picture or clip to make: the prompt, its encoded conditions, and how to sample.

    `conditions` holds the fields that the family wrote for the prompt, `negative` those of the negative prompt, each
    for a batch of one. `scheduler` None means the checkpoint's own; otherwise it names a diffusers scheduler class.
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


def write_image(media: Media, folder: Path) -> list[Path]:
    """Write a Pillow image as PNG whose text entry `tunesmith` holds the recipe as JSON."""
    image: Image = media.content
    info = PngInfo()
    info.add_itxt("tunesmith", json.dumps(dict(media.recipe), default=str))
    path = folder / f"{media.name}.png"
    image.save(path, pnginfo=info)
    return [path]

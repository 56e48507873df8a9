"""Every family that is installed, each with a twin of its checkpoint and batches that it has encoded itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith import AUDIO, HISTORY, PIXELS, Batch, Caption, Crop, Family, FamilyPlugin, Field, Modality, Model, Part, Run, Source, Window
from tunesmith.config import load_config
from tunesmith.data.hashing import FileHashes
from tunesmith.discovery import installed, load_class
from tunesmith.encoding.encode import encode
from tunesmith.engine import Engine
from tunesmith.progress import Progress
from tunesmith.rundir import RunDirectory
from tunesmith.session import assemble

FAMILIES = sorted(name for name in installed() if issubclass(load_class(name), FamilyPlugin))
CAPTIONS = ("a red circle", "somebody speaks")
WIDTH, HEIGHT = 96, 64


@dataclass
class Case:
    """A family at work on its twin, in a run of its own."""

    checkpoint: Path
    family: Family
    plugin: FamilyPlugin[Any]
    run: Run

    @cached_property
    def model(self) -> Model:
        """What is trained."""
        self.run.model = self.run.load(Part.DENOISER)
        return self.run.model

    def frames(self) -> int:
        """Frames of a short clip, or of a picture."""
        return 1 if self.family.modality is Modality.IMAGE else next(n for n in range(9, 100) if self.family.round_frames(n) == n)

    def batch(self, frames: int, width: int = WIDTH, height: int = HEIGHT, count: int = 2, seed: int = 0) -> Batch:
        """A batch of random pixels and sound with every field that the family writes."""
        fields = list(self.plugin.fields(self.run))
        window = Window(2.0, frames, self.family.defaults.fps) if frames > 1 else None
        crop = Crop((width, height), (width, height), (0, 0))
        sources = tuple(Source("data", Path(f"{number}.x"), Caption(CAPTIONS[number % 2]), crop, window) for number in range(count))
        inputs = self.inputs(fields, frames, (width, height), count, seed)
        wanted = frozenset(field.key for field in fields)
        return encode(self.run, Batch(sources, tuple(source.caption for source in sources), inputs, wanted=wanted))

    def inputs(self, fields: list[Field], frames: int, size: tuple[int, int], count: int, seed: int) -> dict[str, Tensor]:
        """What the fields are made of, as kinds of datasets give it."""
        sound, history = self.family.sound, self.family.history
        generator, (width, height) = torch.Generator().manual_seed(seed), size
        shapes: dict[str, tuple[int, ...]] = {PIXELS: (3, height, width) if frames == 1 else (3, frames, height, width)}
        if sound is not None:
            seconds = frames / self.family.defaults.fps if frames > 1 else 0
            shapes[AUDIO] = (sound.channels, round(seconds * sound.sample_rate))
        if history:
            shapes[HISTORY] = (3, history, height, width)
        needed = {need for field in fields if field.per_sample for need in field.needs}
        return {need: torch.rand((count, *shape), generator=generator) * 2 - 1 for need, shape in shapes.items() if need in needed}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Each family in turn."""
    folder = tmp_path_factory.mktemp(request.param)
    kind = load_class(request.param)
    assert issubclass(kind, FamilyPlugin)
    checkpoint = kind.family_type.tiny(folder / "checkpoint")
    file = folder / "config.toml"
    file.write_text(config_text(request.param, checkpoint))
    config = load_config(file)
    cast = assemble(config)
    [plugin] = [plugin for plugin in cast.hooks.plugins if plugin.name == request.param]
    assert isinstance(plugin, FamilyPlugin)
    with FileHashes(folder / "hashes.sqlite") as hashes, Progress("quiet") as progress:
        run = Run(config, cast.family, cast.hooks, Engine(config.run), RunDirectory(folder / "run"), hashes, progress)
        yield Case(checkpoint, cast.family, plugin, run)


def config_text(family: str, checkpoint: Path) -> str:
    """A config that is never run."""
    return f"""
[run]
steps = 1
precision = "no"
device = "cpu"

[model]
family = {family!r}
path = {str(checkpoint)!r}

[[datasets]]
path = "pictures"
"""

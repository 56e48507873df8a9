"""A tiny checkpoint, and what is given to the family."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.loading import load_part, make_run, noise, uniform
from tunesmith import Batch, Caption, Crop, Part, Run, Source, Window
from tunesmith_wan_s2v import WanS2V, WanS2VFamily, WanS2VModel, WanS2VSettings, WanSpeechToVideoPipeline

__all__ = ["make_run", "noise", "uniform"]

WIDTH, HEIGHT = 96, 64
FPS = 16.0


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random twin of a Wan S2V checkpoint."""
    return WanS2VFamily.tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pipe(twin: Path) -> WanSpeechToVideoPipeline:
    """The twin as diffusers loads it: what everything is compared with."""
    pipeline: WanSpeechToVideoPipeline = WanSpeechToVideoPipeline.from_pretrained(twin)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plugin(checkpoint: Path, **settings: Any) -> WanS2V:
    return WanS2V("wan_s2v", WanS2VSettings(path=str(checkpoint), **settings))


load = partial(load_part, WanS2VModel)


def inputs(frames: int, count: int = 2, history: int = 0, control: bool = False, reference: bool = False) -> dict[str, Tensor]:
    """What kinds of datasets give of clips, or of pictures where there is one frame."""
    shape = (count, 3, HEIGHT, WIDTH) if frames == 1 else (count, 3, frames, HEIGHT, WIDTH)
    made = {"pixels": uniform(*shape), "audio": uniform(count, 1, 0 if frames == 1 else round(frames / FPS * 16_000), seed=1)}
    if history:
        made["history"] = uniform(count, 3, history, HEIGHT, WIDTH, seed=2)
    if control:
        made["control"] = uniform(*shape, seed=3)
    if reference:
        made["reference"] = uniform(count, 3, HEIGHT, WIDTH, seed=4)
    return made


def sources(frames: int, count: int = 2, start: float = 5.0) -> tuple[Source, ...]:
    window = Window(start, frames, FPS) if frames > 1 else None
    crop = Crop((WIDTH, HEIGHT), (WIDTH, HEIGHT), (0, 0))
    return tuple(Source("data", Path(f"{index}.mp4"), Caption(f"somebody says {index}"), crop, window) for index in range(count))


def encoded(family: WanS2V, run: Run, given: dict[str, Tensor], samples: tuple[Source, ...]) -> Batch:
    """The samples with every field that the family writes of them."""
    wanted = frozenset(field.key for field in family.fields(run))
    if not hasattr(run, "encoders"):
        load(family, run, Part.ENCODERS)
    return family.encode_batch(run, Batch(samples, tuple(source.caption for source in samples), given, wanted=wanted))

"""A tiny checkpoint, and a stand-in for the run that loads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tunesmith import Batch, Caption, Crop, Part, Run, Source, Window
from tunesmith_wan_s2v import WanS2V, WanS2VFamily, WanS2VModel, WanS2VSettings, WanSpeechToVideoPipeline

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


def hash_files(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """A stand-in for a run, with what a family asks of one."""

    def make(weights: str = "fp32", controlled: bool = False, latents: str = "mean") -> Run:
        companions = {"control": object()} if controlled else {}
        values = SimpleNamespace(
            config=SimpleNamespace(run=SimpleNamespace(weights=weights, latents=latents)),
            device=torch.device("cpu"),
            fingerprint=hash_files,
            datasets={"data": SimpleNamespace(companions=companions)},
            current=None,
            numpy_generator=lambda purpose, position: np.random.default_rng([len(purpose), position]),
        )
        return cast(Run, values)

    return make


def plugin(checkpoint: Path, **settings: Any) -> WanS2V:
    return WanS2V("wan_s2v", WanS2VSettings(path=str(checkpoint), **settings))


def load(family: WanS2V, run: Run, part: Part) -> WanS2VModel:
    model = family.load_model(run, part)
    assert isinstance(model, WanS2VModel)
    if part is Part.ENCODERS:
        cast(Any, run).encoders = model
    return model


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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

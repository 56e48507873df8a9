"""A tiny checkpoint, and a stand-in for the run that loads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import SanaPipeline

from tunesmith import Batch, Caption, Part, Ragged, Run, SampleRequest
from tunesmith_sana import Sana, SanaFamily, SanaModel, SanaSettings

CAPTIONS = (Caption("A red circle on white"), Caption(""), Caption("", negative=True), Caption("Blurry, ugly", negative=True))


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random twin of a Sana checkpoint."""
    return SanaFamily.tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pipe(twin: Path) -> SanaPipeline:
    """The twin as diffusers loads it: what everything is compared with."""
    pipeline = SanaPipeline.from_pretrained(twin)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def hash_files(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """A stand-in for a run, with what a family asks of one."""

    def make(weights: str = "fp32", resolutions: tuple[str, ...] = (), scheduler: str | None = None) -> Run:
        config = SimpleNamespace(
            run=SimpleNamespace(weights=weights, latents="mean"),
            datasets=(),
            validation=SimpleNamespace(resolutions=resolutions, scheduler=scheduler),
        )
        return cast(Run, SimpleNamespace(config=config, device=torch.device("cpu"), fingerprint=hash_files))

    return make


def plugin(checkpoint: Path, **settings: Any) -> Sana:
    return Sana("sana", SanaSettings(path=str(checkpoint), **settings))


def load(sana: Sana, run: Run, part: Part) -> SanaModel:
    model = sana.load_model(run, part)
    assert isinstance(model, SanaModel)
    if part is Part.ENCODERS:
        cast(Any, run).encoders = model
    return model


def pixels(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoded(checkpoint: Path, run: Run, *captions: Caption, **settings: Any) -> Ragged:
    """The prompt embeddings of some captions."""
    sana = plugin(checkpoint, **settings)
    load(sana, run, Part.ENCODERS)
    return sana.encode_batch(run, Batch(captions=captions, wanted=frozenset({"prompt_embeds"}))).ragged("prompt_embeds")


def request(embeds: Ragged, negative: Ragged, **changes: Any) -> SampleRequest:
    values: dict[str, Any] = {
        "name": "a-64x64-seed7",
        "prompt": "a",
        "negative_prompt": "b",
        "width": 64,
        "height": 64,
        "frames": 1,
        "guidance": 4.5,
        "steps": 4,
        "seed": 7,
        "scheduler": None,
    }
    return SampleRequest(**{**values, **changes}, conditions={"prompt_embeds": embeds}, negative={"prompt_embeds": negative})

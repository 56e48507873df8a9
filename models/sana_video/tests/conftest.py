"""A tiny checkpoint, and a stand-in for the run that loads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import SanaVideoPipeline
from torch import Tensor

from tunesmith import Batch, Caption, Part, Ragged, Run, SampleRequest
from tunesmith_sana_video import SanaVideo, SanaVideoFamily, SanaVideoModel, SanaVideoSettings

PROMPT, NEGATIVE = "A red circle on white", "Blurry, ugly"


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random twin of a Sana Video checkpoint."""
    return SanaVideoFamily.tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pipe(twin: Path) -> SanaVideoPipeline:
    """The twin as diffusers loads it: what everything is compared with."""
    pipeline = SanaVideoPipeline.from_pretrained(twin)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def hash_files(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """A stand-in for a run, with what a family asks of one."""

    def make(weights: str = "fp32", latents: str = "mean", **validation: Any) -> Run:
        config = SimpleNamespace(
            run=SimpleNamespace(weights=weights, latents=latents),
            datasets=validation.pop("datasets", ()),
            validation=SimpleNamespace(**{"resolutions": (), "scheduler": None, **validation}),
        )
        return cast(Run, SimpleNamespace(config=config, device=torch.device("cpu"), fingerprint=hash_files))

    return make


def plugin(checkpoint: Path, **settings: Any) -> SanaVideo:
    return SanaVideo("sana_video", SanaVideoSettings(path=str(checkpoint), **settings))


def load(family: SanaVideo, run: Run, part: Part) -> SanaVideoModel:
    model = family.load_model(run, part)
    assert isinstance(model, SanaVideoModel)
    if part is Part.ENCODERS:
        cast(Any, run).encoders = model
    return model


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def encoded(checkpoint: Path, run: Run, *captions: Caption, **settings: Any) -> Ragged:
    """The prompt embeddings of some captions."""
    family = plugin(checkpoint, **settings)
    load(family, run, Part.ENCODERS)
    return family.encode_batch(run, Batch(captions=captions, wanted=frozenset({"prompt_embeds"}))).ragged("prompt_embeds")


def conditions(embeds: Ragged) -> Batch:
    return Batch(fields={"prompt_embeds": embeds})


def request(embeds: Ragged, negative: Ragged, **changes: Any) -> SampleRequest:
    values: dict[str, Any] = {
        "name": "a",
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "width": 96,
        "height": 64,
        "frames": 9,
        "fps": 16.0,
        "guidance": 6.0,
        "steps": 4,
        "seed": 7,
        "scheduler": None,
    }
    return SampleRequest(**{**values, **changes}, conditions={"prompt_embeds": embeds}, negative={"prompt_embeds": negative})

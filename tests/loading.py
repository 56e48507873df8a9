"""A stand-in for the run that loads a family, and what the families' own tests do with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tunesmith import Batch, Caption, Model, Part, PipelinePlugin, Ragged, Run, SampleRequest

Loaded = TypeVar("Loaded", bound=Model)


def hash_files(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """A stand-in for a run, with what a family asks of one; further arguments are settings of `[validation]`."""

    def make(
        weights: str = "fp32", latents: str = "mean", datasets: Sequence[Any] = (), controlled: bool = False, **validation: Any
    ) -> Run:
        config = SimpleNamespace(
            run=SimpleNamespace(weights=weights, latents=latents),
            datasets=datasets,
            validation=SimpleNamespace(**{"resolutions": (), "scheduler": None, **validation}),
        )
        run = SimpleNamespace(
            config=config,
            device=torch.device("cpu"),
            fingerprint=hash_files,
            datasets={"data": SimpleNamespace(companions={"control": object()} if controlled else {})},
            current=None,
            numpy_generator=lambda purpose, position: np.random.default_rng([len(purpose), position]),
        )
        return cast(Run, run)

    return make


def load_part(kind: type[Loaded], family: PipelinePlugin[Any], run: Run, part: Part) -> Loaded:
    """A part of the model, which is of this kind; encoders are kept by the run."""
    model = family.load_model(run, part)
    assert isinstance(model, kind)
    if part is Part.ENCODERS:
        cast(Any, run).encoders = model
    return model


def embeddings(family: PipelinePlugin[Any], run: Run, *captions: Caption) -> Ragged:
    """The prompt embeddings of some captions, by encoders that are loaded for them."""
    cast(Any, run).encoders = family.load_model(run, Part.ENCODERS)
    return family.encode_batch(run, Batch(captions=captions, wanted=frozenset({"prompt_embeds"}))).ragged("prompt_embeds")


def sample_request(embeds: Ragged, negative: Ragged, **values: Any) -> SampleRequest:
    """A sample of four steps by the family's own scheduler, unless `values` say otherwise."""
    told: dict[str, Any] = {"steps": 4, "seed": 7, "scheduler": None, **values}
    return SampleRequest(**told, conditions={"prompt_embeds": embeds}, negative={"prompt_embeds": negative})


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Random values in [-1, 1], as pixels and sound have."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed values, as noisy latents have."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

"""A tiny checkpoint, and what is asked of the family."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from diffusers import SanaPipeline

from tests.loading import embeddings, load_part, make_run, noise, sample_request, uniform
from tunesmith import Caption, Ragged, Run
from tunesmith_sana import Sana, SanaFamily, SanaModel, SanaSettings

__all__ = ["make_run", "noise", "uniform"]

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


def plugin(checkpoint: Path, **settings: Any) -> Sana:
    return Sana("sana", SanaSettings(path=str(checkpoint), **settings))


def encoded(checkpoint: Path, run: Run, *captions: Caption, **settings: Any) -> Ragged:
    """The prompt embeddings of some captions."""
    return embeddings(plugin(checkpoint, **settings), run, *captions)


load = partial(load_part, SanaModel)
request = partial(sample_request, name="a-64x64-seed7", prompt="a", negative_prompt="b", width=64, height=64, frames=1, guidance=4.5)

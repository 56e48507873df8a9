"""A tiny checkpoint, and what is asked of the family."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from diffusers import SanaVideoPipeline

from tests.loading import embeddings, load_part, make_run, noise, sample_request, uniform
from tunesmith import Batch, Caption, Ragged, Run
from tunesmith_sana_video import SanaVideo, SanaVideoFamily, SanaVideoModel, SanaVideoSettings

__all__ = ["make_run", "noise", "uniform"]

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


def plugin(checkpoint: Path, **settings: Any) -> SanaVideo:
    return SanaVideo("sana_video", SanaVideoSettings(path=str(checkpoint), **settings))


def encoded(checkpoint: Path, run: Run, *captions: Caption, **settings: Any) -> Ragged:
    """The prompt embeddings of some captions."""
    return embeddings(plugin(checkpoint, **settings), run, *captions)


def conditions(embeds: Ragged) -> Batch:
    return Batch(fields={"prompt_embeds": embeds})


load = partial(load_part, SanaVideoModel)
request = partial(sample_request, name="a", prompt=PROMPT, negative_prompt=NEGATIVE, width=96, height=64, frames=9, fps=16.0, guidance=6.0)

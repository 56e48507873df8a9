"""A tiny checkpoint, a few pictures, and a way to run a config on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs.conftest import short_run, start_run
from tunesmith_sana import SanaFamily

Runner = Callable[..., Path]


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SanaFamily.tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        Image.fromarray(np.full((64, 64, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"shade {number}")
    return folder


@pytest.fixture
def train(tmp_path: Path, twin: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run the common tables and `extra`, with `--set` overrides; gives the run's directory."""
    monkeypatch.chdir(tmp_path)

    model = f'family = "sana"\npath = {str(twin)!r}\ncomplex_human_instruction = false'
    dataset = f"path = {str(pictures)!r}\nresolution = 64"

    def start(name: str, extra: str, *overrides: str) -> Path:
        text = short_run(model, "lr = 1e-2", dataset, TABLES + extra, batch_size=1)
        return start_run(tmp_path / f"{name}.toml", text, overrides).path

    return start


TABLES = """
[checkpoints]
every = 1

[validation]
prompts = { grey = "a shade" }
resolutions = ["64x64"]
steps = 2
at_start = false

"""

"""A tiny checkpoint, a few pictures, and a way to run a config on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tunesmith.config import load_config
from tunesmith.progress import Progress
from tunesmith.session import run
from tunesmith_sana import SanaFamily


@dataclass(frozen=True)
class Result:
    """The directory of a run that is over, and what it said."""

    path: Path
    messages: str

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        events = map(json.loads, (self.path / "events.jsonl").read_text().splitlines())
        return [event["loss"] for event in events if event["event"] == "step"]

    @property
    def adapter(self) -> Path:
        """The LoRA file of the finished run."""
        return self.path / "final/pytorch_lora_weights.safetensors"


Runner = Callable[..., Result]


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
def write(tmp_path: Path, twin: Path, pictures: Path) -> Callable[[str, str], Path]:
    """A config of the common tables and `extra`, in a file of this name."""

    def written(name: str, extra: str) -> Path:
        file = tmp_path / f"{name}.toml"
        file.write_text(
            f"""
[run]
steps = 4
precision = "no"
device = "cpu"
log_every = 1

[model]
family = "sana"
path = {str(twin)!r}
complex_human_instruction = false

[optimizer]
lr = 1e-2

[[datasets]]
path = {str(pictures)!r}
resolution = 64

[checkpoints]
every = false

{extra}
"""
        )
        return file

    return written


@pytest.fixture
def train(tmp_path: Path, write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run such a config, with `--set` overrides."""
    monkeypatch.chdir(tmp_path)

    def start(name: str, extra: str, *overrides: str) -> Result:
        told = StringIO()
        with Progress("auto", told) as progress:
            path = run(load_config(write(name, extra), overrides), "latest", progress)
        return Result(path, told.getvalue())

    return start

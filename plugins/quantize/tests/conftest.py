"""A tiny checkpoint, a few pictures, and a way to run a config on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from tests.runs.conftest import shades, short_run, twin
from tunesmith.config import load_config
from tunesmith.progress import Progress
from tunesmith.session import run

__all__ = ["Result", "Runner", "shades", "train", "twin", "write"]


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


@pytest.fixture
def write(tmp_path: Path, twin: Path, shades: Path) -> Callable[[str, str], Path]:
    """A config of the common tables and `extra`, in a file of this name."""
    model = f'family = "sana"\npath = {str(twin)!r}\ncomplex_human_instruction = false'
    dataset = f"path = {str(shades)!r}\nresolution = 64"

    def written(name: str, extra: str) -> Path:
        file = tmp_path / f"{name}.toml"
        file.write_text(short_run(model, "lr = 1e-2", dataset, "[checkpoints]\nevery = false\n" + extra, steps=4, batch_size=1))
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

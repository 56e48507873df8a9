"""A tiny checkpoint, a few pictures, and a way to run a config: what the tests of whole runs share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tunesmith.combined import tensors_kept
from tunesmith.config import Config, load_config
from tunesmith.progress import Progress
from tunesmith.session import run
from tunesmith_sana import SanaFamily

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220), "white": (240, 240, 240)}


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random twin of a Sana checkpoint."""
    return SanaFamily.tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned pictures in two shapes, four of each."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, (name, colour) in enumerate([*COLOURS.items()] * 2):
        wide = number >= len(COLOURS)
        pixels = np.full((64, 128 if wide else 64, 3), 128, np.uint8)
        pixels[16:48, 16:48] = colour
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {name} square\na square, {name}\n")
    return folder


@pytest.fixture(scope="session")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four captioned pictures of one shade of grey each."""
    folder = tmp_path_factory.mktemp("shades")
    for number in range(4):
        Image.fromarray(np.full((64, 64, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"shade {number}")
    return folder


@dataclass(frozen=True)
class Result:
    """A finished run directory, read back."""

    path: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "events.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> dict[int, float]:
        """Loss by step; where a step was run twice, the later one counts."""
        return {event["step"]: event["loss"] for event in self.events if event["event"] == "step"}

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """Every tensor of a checkpoint: weights, adapter, optimizer."""
        folder = self.path / "checkpoints" / f"step-{step:06d}"
        tensors = {
            f"{file.relative_to(folder)}:{key}": value for file in folder.rglob("*.safetensors") for key, value in load_file(file).items()
        }
        state = torch.load(folder / "training" / "state.pt", weights_only=True)
        return tensors | dict(tensors_kept(state["optimizer"]))

    def pictures(self, step: int) -> dict[str, bytes]:
        """Pixels of every validation picture of a step."""
        folder = self.path / "validation" / f"step-{step:06d}"
        return {file.name: Image.open(file).tobytes() for file in sorted(folder.glob("*.png"))}


def prepared(config: Config) -> Config:
    """The config as it is; tests replace this to add a plugin of their own."""
    return config


Runner = Callable[..., Result]


@pytest.fixture
def train(tmp_path: Path, twin: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run a config: the common tables, then `extra` TOML, then `--set` overrides."""
    monkeypatch.chdir(tmp_path)

    def start(name: str, extra: str = "", *overrides: str, resume: str = "latest") -> Result:
        return start_run(tmp_path / f"{name}.toml", config_text(twin, pictures, extra), overrides, resume)

    return start


def start_run(file: Path, text: str, overrides: Sequence[str] = (), resume: str = "latest") -> Result:
    """Run a config, which is written to the file."""
    file.write_text(text)
    with Progress("quiet") as progress:
        return Result(run(prepared(load_config(file, overrides)), resume, progress))


def short_run(model: str, optimizer: str, dataset: str, extra: str = "", steps: int = 6, batch_size: int = 2) -> str:
    """A config of a short run on the CPU, every loss recorded: the lines of three tables, then more tables."""
    return f"""
[run]
steps = {steps}
batch_size = {batch_size}
precision = "no"
device = "cpu"
log_every = 1

[model]
{model}

[optimizer]
{optimizer}

[[datasets]]
{dataset}

{extra}
"""


def config_text(twin: Path, pictures: Path, extra: str = "") -> str:
    """A short run on the tiny twin."""
    model = f'family = "sana"\npath = {str(twin)!r}\ncomplex_human_instruction = false'
    dataset = f"""path = {str(pictures)!r}
resolution = 64
caption_dropout = 0.3
crop = "random"
variants = 2"""
    return short_run(model, COSINE, dataset, VALIDATION + extra)


COSINE = 'lr = 1e-3\nschedule = "cosine"\nwarmup = 2'
VALIDATION = """[validation]
prompts = { red = "a red square" }
resolutions = ["64x64"]
steps = 2

"""
LORA = "[plugins.lora]\nrank = 4\nalpha = 8\ndropout = 0.1\n"

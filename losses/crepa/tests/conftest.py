"""Small DINOv2 checkpoints, clips and pictures, and runs on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from tests.runs.conftest import short_run
from tests.runs.filming import twin_of
from tunesmith import Loss, Run, Step
from tunesmith.config import Config, load_config
from tunesmith.hooks import HookCaller
from tunesmith.progress import Progress
from tunesmith.session import run

__all__ = ["twin_of"]

FAMILIES = ("sana", "sana_video", "wan_s2v")
WIDTH = 16
"""Of the features of the small encoders."""


def write_encoder(folder: Path, registers: int = 0, patch_size: int = 14) -> Path:
    """A small DINOv2 with random weights, as `save_pretrained` leaves it."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": patch_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        if registers:
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)).save_pretrained(folder)
        else:
            Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DINOv2."""
    return write_encoder(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def with_registers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DINOv2 with four register tokens."""
    return write_encoder(tmp_path_factory.mktemp("dinov2_registers"), registers=4)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three films of nine frames, 96x64, without loss: squares that drift."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(3):
        still = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        with av.open(str(folder / f"{number}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=16)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
            for frame in range(9):
                shown = VideoFrame.from_ndarray(np.roll(still, 3 * frame, axis=1), format="rgb24")
                container.mux(stream.encode(shown.reformat(format="bgr0")))
            container.mux(stream.encode())
        (folder / f"{number}.txt").write_text(f"squares {number}")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of 96x64."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"squares {number}")
    return folder


@dataclass(frozen=True)
class Watched:
    """A micro-batch as it came out of `compute_loss`."""

    run: Run
    step: Step
    loss: Loss


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every micro-batch of the runs of a test, in their order."""
    seen: list[Watched] = []
    compute = HookCaller.compute_loss

    def watch(self: HookCaller, run: Run, step: Step) -> Loss:
        seen.append(Watched(run, step, compute(self, run, step)))
        return seen[-1].loss

    monkeypatch.setattr(HookCaller, "compute_loss", watch)
    return seen


@dataclass(frozen=True)
class Result:
    """A finished run directory, read back."""

    path: Path

    @property
    def steps(self) -> dict[int, dict[str, Any]]:
        """What was told of each step; where one was run twice, the later one counts."""
        events = [json.loads(line) for line in (self.path / "events.jsonl").read_text().splitlines()]
        times = "steps_per_second", "peak_memory", "time"
        return {event["step"]: {k: v for k, v in event.items() if k not in times} for event in events if event["event"] == "step"}

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint has of plugins and of the optimizer."""
        found: dict[str, Any] = torch.load(
            self.path / "checkpoints" / f"step-{step:06d}" / "training" / "state.pt", weights_only=True, map_location="cpu"
        )
        return found


@pytest.fixture
def write(tmp_path: Path, twin_of: Callable[[str], Path], clips: Path, pictures: Path, encoder: Path) -> Callable[..., Config]:
    """The config of a short run of a family with CREPA, then further TOML, then `--set` overrides."""

    def config(family: str, name: str, crepa: str = "", extra: str = "", *overrides: str) -> Config:
        data = f"path = {str(pictures)!r}" if family == "sana" else f'kind = "video"\npath = {str(clips)!r}\nnum_frames = 9'
        data += "\nallow_silence = true" if family == "wan_s2v" else ""
        own = crepa if "source" in crepa or "encoder" in crepa else f"encoder = {str(encoder)!r}\n{crepa}"
        size = "" if "source" in crepa else "image_size = 56"
        file = tmp_path / f"{name}.toml"
        model = f"family = {family!r}\npath = {str(twin_of(family))!r}"
        dataset = f'name = "data"\n{data}\nresolution = 64\nresolution_type = "pixel"'
        tables = f"[plugins.crepa]\n{size}\n{own}\n{extra}"
        file.write_text(short_run(model, "lr = 1e-3", dataset, tables, steps=3, batch_size=1))
        places = f"run.output={str(tmp_path / 'runs')!r}", f"run.cache_dir={str(tmp_path / 'cache')!r}"
        return load_config(file, (*places, *overrides))

    return config


@pytest.fixture
def train(write: Callable[..., Config]) -> Callable[..., Result]:
    """Carry out such a config."""

    def start(family: str, name: str, crepa: str = "", extra: str = "", *overrides: str) -> Result:
        with Progress("quiet") as progress:
            return Result(run(write(family, name, crepa, extra, *overrides), "latest", progress))

    return start

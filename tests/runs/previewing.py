"""Runs of the toy family on grey clips, and what their validations left: what the tests of previews share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.toyvideo import clip
from tunesmith.config import ConfigErrors, load_config
from tunesmith.session import assemble

from .conftest import Result, short_run, start_run

Start = Callable[..., Result]
TAKES = "takes = { reference = false, audio = false, control = false }"
TWO = '[validation]\nprompts = { one = "a clip", two = "another" }\n'


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Four clips of nine frames, each of its own grey."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(4):
        clip(folder / f"{number}.npy", np.full((9, 32, 32, 3), 40 * number, np.uint8), f"clip {number}")
    return folder


def clips_text(checkpoint: Path, clips: Path, model: str = "", extra: str = "", steps: int = 2) -> str:
    """A short run of the toy family on clips."""
    dataset = f"""kind = "toyclips"
name = "clips"
path = {str(clips)!r}
resolution = 32
num_frames = 9"""
    return short_run(f'family = "toyvideo"\npath = {str(checkpoint)!r}\n{model}', "lr = 1e-2", dataset, extra, steps)


@pytest.fixture
def start(tmp_path: Path, toy_checkpoint: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Run a config on the clips: keys of `[model]`, then more tables, then overrides."""
    monkeypatch.chdir(tmp_path)

    def begin(model: str = "", extra: str = "", *overrides: str, name: str = "made") -> Result:
        return start_run(tmp_path / f"{name}.toml", clips_text(toy_checkpoint, clips, model, extra), overrides)

    return begin


@pytest.fixture
def refused(tmp_path: Path, toy_checkpoint: Path, clips: Path) -> Callable[..., str]:
    """What is said of a config before anything is loaded."""

    def complaints(model: str = "", extra: str = "") -> str:
        file = tmp_path / "refused.toml"
        file.write_text(clips_text(toy_checkpoint, clips, model, extra))
        with pytest.raises(ConfigErrors) as caught:
            assemble(load_config(file))
        return str(caught.value)

    return complaints


def beside(clips: Path, edge: int) -> tuple[Path, Path, str]:
    """Folders with a white face beside the second clip and with poses beside all four, each of its own grey, and their tables."""
    faces, poses = clips.with_name("faces"), clips.with_name("poses")
    faces.mkdir()
    poses.mkdir()
    grey(faces / "1.png", 255)
    for number in range(4):
        np.save(poses / f"{number}.npy", np.full((9, edge, edge, 3), 255 - number, np.uint8))
    tables = f"""
[[datasets]]
kind = "reference"
of = "clips"
path = {str(faces)!r}
missing = "own"
[[datasets]]
kind = "control"
of = "clips"
path = {str(poses)!r}
"""
    return faces, poses, tables


def made(result: Result, step: int = 2) -> list[str]:
    folder = result.path / "validation" / f"step-{step:06d}"
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


def recipe(result: Result, name: str, step: int = 2) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(Image.open(result.path / "validation" / f"step-{step:06d}" / f"{name}.png").info["tunesmith"])
    return told


def warnings(result: Result) -> list[tuple[str, str]]:
    return [(event["message"], event["reason"]) for event in result.events if event["event"] == "warning"]


def grey(file: Path, value: int, size: tuple[int, int] = (48, 40)) -> Path:
    Image.new("RGB", size, (value, value, value)).save(file)
    return file

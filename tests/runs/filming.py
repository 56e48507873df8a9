"""Films that decode to the same bytes everywhere, and runs of families of clips on them: what tests of such families share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from tunesmith import FamilyPlugin
from tunesmith.discovery import load_class

from .conftest import COSINE, Result, short_run, start_run

FPS, RATE = 16, 16_000
SIZES = {"a": (96, 64, 19), "b": (96, 64, 17), "c": (64, 96, 17), "d": (64, 96, 18), "e": (96, 64, 9)}
"""Width, height and frames of each film."""


def moving(width: int, height: int, frames: int, seed: int) -> NDArray[np.uint8]:
    """A pattern of squares that drifts, [F, H, W, 3]."""
    still = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    return np.stack([np.roll(still, 2 * frame, axis=1) for frame in range(frames)])


def write_film(file: Path, frames: NDArray[np.uint8], hertz: float) -> None:
    """Write frames [F, H, W, 3] without loss, with a tone that swells and fades."""
    with av.open(str(file), "w") as container:
        pictures = container.add_stream("ffv1", rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt = frames.shape[2], frames.shape[1], "bgr0"
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for frame in frames:
            container.mux(pictures.encode(VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(pictures.encode())
        times = np.arange(round(len(frames) / FPS * RATE)) / RATE
        tone = 0.4 * np.sin(2 * np.pi * hertz * times) * (1 - np.cos(2 * np.pi * 3 * times))
        heard = av.AudioFrame.from_ndarray((tone * 32767).round().astype(np.int16)[None], format="s16", layout="mono")
        heard.sample_rate, heard.pts = RATE, 0
        container.mux(sound.encode(heard))
        container.mux(sound.encode())


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five captioned films in two shapes, one of them short."""
    folder = tmp_path_factory.mktemp("films")
    for number, (stem, size) in enumerate(SIZES.items()):
        write_film(folder / f"{stem}.mkv", moving(*size, seed=number), 200 + 100 * number)
        (folder / f"{stem}.txt").write_text(f"film {stem}\nsquares, {stem}\n")
    return folder


def films_text(family: str, checkpoint: Path, films: Path, extra: str = "") -> str:
    """A short run on the films."""
    dataset = f"""kind = "video"
name = "films"
path = {str(films)!r}
resolution = 64
resolution_type = "pixel"
num_frames = 17
min_frames = 9
caption_dropout = 0.3"""
    return short_run(f"family = {family!r}\npath = {str(checkpoint)!r}", COSINE, dataset, extra, batch_size=1)


Film = Callable[..., Result]


@pytest.fixture(scope="session")
def twin_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The twin of a family's checkpoint, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        kind = load_class(family)
        assert issubclass(kind, FamilyPlugin)
        if family not in made:
            made[family] = kind.family_type.tiny(tmp_path_factory.mktemp(family) / "checkpoint")
        return made[family]

    return make


@pytest.fixture
def film(tmp_path: Path, twin_of: Callable[[str], Path], films: Path, monkeypatch: pytest.MonkeyPatch) -> Film:
    """Train a family on the films: the common tables, then `extra` TOML, then `--set` overrides."""
    monkeypatch.chdir(tmp_path)

    def start(family: str, name: str, extra: str = "", *overrides: str) -> Result:
        return start_run(tmp_path / f"{name}.toml", films_text(family, twin_of(family), films, extra), overrides)

    return start

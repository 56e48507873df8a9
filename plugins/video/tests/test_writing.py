"""Films that validation leaves: read back, they show the frames, at their rate, with the sound in step and the recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tunesmith import Clip, Media
from tunesmith_video import writing
from tunesmith_video.kinds import VideoKind
from tunesmith_video.sound import Part, read_sound
from tunesmith_video.writing import choose_encoder, exact_rate, write_clip

from .films import drawn, numbers, swept

RECIPE = {"prompt": "a “fox”\nsings; 狐 = 1", "seed": 3, "config": {"run": {"steps": 5}}, "path": Path("x")}


@dataclass(frozen=True)
class Film:
    """A film, decoded whole by PyAV."""

    frames: NDArray[np.uint8]
    times: list[float]
    rate: Fraction | None
    codec: str
    pixel_format: str | None
    comment: str
    seconds: float


def decoded(file: Path) -> Film:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        shown = list(container.decode(stream))
        return Film(
            np.stack([frame.to_ndarray(format="rgb24", src_colorspace="ITU709") for frame in shown]),
            [float(frame.pts * stream.time_base) for frame in shown if frame.pts is not None],
            stream.average_rate,
            stream.codec_context.name,
            stream.codec_context.pix_fmt,
            container.metadata["comment"],
            float((stream.duration or 0) * stream.time_base),
        )


def smooth(frames: int, width: int, height: int) -> Tensor:
    """Frames of gentle colours that move, uint8 [F, H, W, 3], whose last row and column are unlike the rest."""
    rows, columns = np.mgrid[:height, :width]
    shown = []
    for number in range(frames):
        red = 128 + 90 * np.sin(columns / 20 + number / 5)
        green = 128 + 90 * np.cos(rows / 15)
        shown.append(np.stack([red, green, np.full(red.shape, 40.0 + number)], axis=-1))
    return torch.from_numpy(np.stack(shown).round().astype(np.uint8))


def written(folder: Path, **content: Any) -> list[Path]:
    return write_clip(Media("clip", "fox-1", Clip(**content), RECIPE), folder)


def click(seconds: float, at: float, rate: int, channels: int = 1) -> Tensor:
    """Silence with a click of a millisecond."""
    sound = torch.zeros(channels, round(seconds * rate))
    sound[:, round(at * rate) : round((at + 0.001) * rate)] = 0.9
    return sound


def heard(file: Path, rate: int = 48_000, seconds: float = 1.0) -> NDArray[np.float32]:
    return read_sound(file, Part(0.0, round(seconds * rate), rate, 1), of_clip=True, lacks=10)[0].numpy()


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (16, Fraction(16)),
        (7.5, Fraction(15, 2)),
        (23.976, Fraction(24000, 1001)),
        (24000 / 1001, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (12.5, Fraction(25, 2)),
        (0.5, Fraction(1, 2)),
        (59.94, Fraction(60000, 1001)),
        (120, Fraction(120)),
    ],
)
def test_a_film_has_every_frame_once_at_its_exact_rate(tmp_path: Path, fps: float, rate: Fraction) -> None:
    frames = torch.from_numpy(np.stack([drawn(number) for number in range(21)]))
    film, _ = written(tmp_path, frames=frames, fps=fps)
    found = decoded(film)
    assert found.rate == rate
    assert found.times == pytest.approx([float(number / rate) for number in range(21)], abs=1e-4)
    assert found.seconds == pytest.approx(float(21 / rate), abs=1e-4)
    assert numbers(torch.from_numpy(found.frames).permute(3, 0, 1, 2).float() / 127.5 - 1) == list(range(21))
    assert found.pixel_format == "yuv420p"


def test_numbers_that_are_no_rate_are_refused() -> None:
    for fps in (0, -1, float("nan"), float("inf"), 1000):
        with pytest.raises(ValueError, match="frames a second cannot be shown"):
            exact_rate(fps)
    assert exact_rate(24) == 24
    assert exact_rate(23.98) == Fraction(1199, 50)


@pytest.mark.parametrize("size", [(64, 48), (65, 48), (64, 49), (33, 31)])
def test_the_picture_is_whole_whatever_its_size(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    frames = smooth(8, width, height)
    film, poster = written(tmp_path, frames=frames, fps=16)
    found = decoded(film)
    assert found.frames.shape[1:3] == (height + height % 2, width + width % 2)
    errors = np.abs(found.frames[:, :height, :width].astype(int) - frames.numpy().astype(int))
    assert errors.mean() < 2
    assert np.percentile(errors, 99) < 8
    edge = np.abs(found.frames[:, height - 1, width - 1].astype(int) - frames[:, -1, -1].numpy().astype(int))
    assert edge.max() < 16
    assert np.array_equal(np.asarray(Image.open(poster)), frames[0].numpy())


def test_colours_are_what_this_packages_own_datasets_read(tmp_path: Path) -> None:
    colours = [(220, 40, 40), (40, 180, 60), (40, 70, 220), (240, 240, 240), (0, 0, 0)]
    frames = torch.stack([torch.tensor(colour, dtype=torch.uint8).expand(64, 64, 3) for colour in colours])
    film, _ = written(tmp_path, frames=frames, fps=8)
    from tunesmith import Crop, Window
    from tunesmith_video.clips import Limits, read_frames

    found = read_frames(film, Window(0.0, 5, 8.0), Crop((64, 64), (64, 64), (0, 0)), Limits(10_000, 100))
    told = ((found.mean(dim=(2, 3)).T + 1) * 127.5).round()
    assert (told - torch.tensor(colours)).abs().max() <= 3
    assert VideoKind.probe(film).fps == 8


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_without_h264_there_is_a_film_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str) -> None:
    monkeypatch.setattr(writing, "ENCODERS", ("h264_of_nobody", "h264_nvenc", *([encoder] if encoder != "mpeg4" else [])))
    if encoder == "libx264" and encoder not in av.codecs_available:
        pytest.skip("this build has no libx264")
    assert choose_encoder((64, 48), Fraction(16)) == encoder
    frames = smooth(9, 64, 48)
    film, _ = written(tmp_path, frames=frames, fps=23.976, audio=click(0.4, 0.2, 16_000), sample_rate=16_000)
    found = decoded(film)
    assert found.codec == ("h264" if encoder == "libx264" else "mpeg4")
    assert found.rate == Fraction(24000, 1001)
    assert len(found.frames) == 9
    assert np.abs(found.frames.astype(int) - frames.numpy().astype(int)).mean() < 3
    assert abs(int(np.abs(heard(film, 48_000, 0.4)).argmax()) / 48_000 - 0.2) < 0.002


@pytest.mark.parametrize("rate", [8_000, 16_000, 20_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("fps", [16, 23.976])
def test_the_sound_is_in_step_with_the_frames(tmp_path: Path, rate: int, channels: int, fps: float) -> None:
    frames = smooth(24, 32, 32)
    film, _ = written(tmp_path, frames=frames, fps=fps, audio=click(24 / fps, 0.5, rate, channels), sample_rate=rate)
    with av.open(str(film)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        assert stream.codec_context.layout.nb_channels == channels
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream) if frame.pts is not None and frame.time_base]
        assert abs(times[0]) < 1e-6
    sound = heard(film, 48_000, 24 / fps)
    loud = np.flatnonzero(np.abs(sound) > 0.5 * np.abs(sound).max()) / 48_000
    assert abs(loud.mean() - 0.5005) < 0.002
    probe = VideoKind.probe(film)
    assert probe.sound == pytest.approx(24 / fps, abs=1100 / min(rate, 48_000))


def test_stereo_stays_stereo_and_the_waveform_is_kept(tmp_path: Path) -> None:
    left = torch.from_numpy(swept(2.0))
    film, _ = written(tmp_path, frames=smooth(32, 32, 32), fps=16, audio=torch.stack([left, 0.5 * left]), sample_rate=48_000)
    found = read_sound(film, Part(0.0, 96_000, 48_000, 2), of_clip=True, lacks=0.1)
    middle = slice(2_000, 94_000)
    assert float((found[0] - left)[middle].abs().mean()) < 0.02
    assert float((found[1] - 0.5 * left)[middle].abs().mean()) < 0.02


def test_sound_that_is_shorter_ends_early_and_longer_sound_ends_with_the_last_frame(tmp_path: Path) -> None:
    frames = smooth(32, 32, 32)
    (tmp_path / "long").mkdir()
    short, _ = written(tmp_path, frames=frames, fps=16, audio=torch.from_numpy(swept(0.7))[None], sample_rate=48_000)
    long, _ = written(tmp_path / "long", frames=frames, fps=16, audio=torch.from_numpy(swept(5))[None], sample_rate=48_000)
    assert VideoKind.probe(short).sound == pytest.approx(0.7, abs=0.022)
    assert VideoKind.probe(long).sound == pytest.approx(2.0, abs=0.022)
    for film in (short, long):
        assert len(decoded(film).frames) == 32
        assert decoded(film).seconds == pytest.approx(2.0, abs=1e-3)
    assert np.abs(heard(long, 48_000, 2.0)[-2_000:]).max() > 0.3


def test_a_clip_without_a_sample_of_sound_has_no_track_of_it(tmp_path: Path) -> None:
    for name, audio in (("none", None), ("empty", torch.zeros(1, 0))):
        (tmp_path / name).mkdir()
        film, _ = written(tmp_path / name, frames=smooth(4, 32, 32), fps=16, audio=audio, sample_rate=16_000)
        with av.open(str(film)) as container:
            assert not container.streams.audio


def test_film_and_poster_hold_the_recipe(tmp_path: Path) -> None:
    film, poster = written(tmp_path, frames=smooth(4, 32, 32), fps=16)
    expected = json.loads(json.dumps(RECIPE, default=str))
    assert json.loads(decoded(film).comment) == expected
    assert json.loads(Image.open(poster).info["tunesmith"]) == expected
    large = {**RECIPE, "config": {str(number): "x" * 50 for number in range(4_000)}}
    [film, _] = write_clip(Media("clip", "large", Clip(smooth(4, 32, 32), 16), large), tmp_path)
    assert json.loads(decoded(film).comment)["config"]["3999"] == "x" * 50


def test_the_index_stands_before_the_pictures(tmp_path: Path) -> None:
    film, _ = written(tmp_path, frames=smooth(4, 32, 32), fps=16)
    content = film.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_one_frame_is_a_picture_alone(tmp_path: Path) -> None:
    frames = smooth(1, 33, 32)
    files = written(tmp_path, frames=frames, fps=16, audio=click(1, 0.5, 16_000), sample_rate=16_000)
    assert files == [tmp_path / "fox-1.png"] == list(tmp_path.iterdir())
    assert np.array_equal(np.asarray(Image.open(files[0])), frames[0].numpy())
    assert json.loads(Image.open(files[0]).info["tunesmith"])["seed"] == 3


def test_a_film_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no sound today")

    monkeypatch.setattr(writing, "_encoded_sound", fails)
    with pytest.raises(RuntimeError, match="no sound today"):
        written(tmp_path, frames=smooth(4, 32, 32), fps=16, audio=click(1, 0.1, 16_000), sample_rate=16_000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        written(tmp_path / "nowhere", frames=smooth(4, 32, 32), fps=16)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.zeros(3), "hold a Clip, not a Tensor"),
        (Clip(torch.zeros(4, 32, 32, 3), 16), r"uint8 \[F, H, W, 3\], not torch.float32"),
        (Clip(torch.zeros(3, 4, 32, 32, dtype=torch.uint8), 16), r"not torch.uint8 \[3, 4, 32, 32\]"),
        (Clip(torch.zeros(0, 32, 32, 3, dtype=torch.uint8), 16), r"not torch.uint8 \[0, 32"),
        (Clip(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), 16, torch.zeros(16_000), 16_000), r"not \[16000\] at 16000"),
        (Clip(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), 16, torch.zeros(6, 16_000), 16_000), r"not \[6, 16000\]"),
        (Clip(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), 16, torch.zeros(1, 16_000)), "at 0"),
    ],
)
def test_what_is_no_clip_is_told(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        write_clip(Media("clip", "x", content), tmp_path)
    assert list(tmp_path.iterdir()) == []

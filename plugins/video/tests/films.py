"""Films whose frames carry their number and whose sound tells the time, so that tests know what should be seen and heard."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from numpy.typing import NDArray
from torch import Tensor

from tunesmith import Caption, Crop, Family, FamilyDefaults, Modality, Sound, Source, TokenGrid, Window

COLUMNS, ROWS = 8, 2
SIZE = (128, 64)
H264 = "libx264" if "libx264" in av.codecs_available else "mpeg4"


class Facts(Family):
    """A family of clips of 4k + 1 frames at 16 a second, whose sides are multiples of 16."""

    name = "facts"
    modality = Modality.VIDEO
    alignment = 16
    adapter_targets = ()
    variants = {}  # noqa: RUF012
    defaults = FamilyDefaults(size=SIZE, frames=17, fps=16, guidance=1, sampling_steps=1, aligned_block=0)
    refuses = {}  # noqa: RUF012
    noise_shift = None

    def __init__(self, sound: Sound | None = None) -> None:
        self.sound = sound

    def round_frames(self, frames: int) -> int:
        return (frames - 1) // 4 * 4 + 1

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return 3, frames, height // 8, width // 8

    def token_grid(self, frames: int, height: int, width: int) -> TokenGrid:
        return TokenGrid(frames, height // 8, width // 8)

    def on_meta(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1, device="meta")

    @classmethod
    def tiny(cls, folder: Path, seed: int = 0) -> Path:
        raise NotImplementedError


def drawn(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A frame that carries its number: 16 fields, white where a bit is set."""
    width, height = size
    columns = np.arange(width) * COLUMNS // width
    rows = np.arange(height) * ROWS // height
    bits = rows[:, None] * COLUMNS + columns[None, :]
    grey = np.where((number >> bits) & 1, 235, 20).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def numbers(pixels: Tensor) -> list[int]:
    """The numbers that frames [3, F, H, W] carry."""
    _, frames, height, width = pixels.shape
    found = []
    for frame in range(frames):
        grey = pixels[:, frame].mean(dim=0)
        value = 0
        for bit in range(COLUMNS * ROWS):
            row, column = divmod(bit, COLUMNS)
            top, left = height * (2 * row + 1) // (2 * ROWS), width * (2 * column + 1) // (2 * COLUMNS)
            value |= int(grey[top - 1 : top + 1, left - 1 : left + 1].mean() > 0) << bit
        found.append(value)
    return found


def film(
    file: Path,
    frames: int = 48,
    fps: float | Fraction = 16,
    *,
    size: tuple[int, int] = SIZE,
    codec: str = H264,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    sound: NDArray[np.float32] | None = None,
    sound_codec: str = "aac",
    sound_rate: int = 48_000,
    sound_start: float = 0.0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a film: frame n carries n, and is shown at `times[n]` or n / fps. `sound` is [samples] from `sound_start` on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    clock = Fraction(1, 90_000) if times is not None else 1 / rate
    given = options if options is not None else {"g": "12", "bf": "2"} if codec == "libx264" else {"g": "12"}
    with av.open(str(file), "w", container_options=container_options or {}) as out:
        stream: Any = out.add_stream(codec, rate=rate, options=given)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p" if size[0] % 2 == 0 and size[1] % 2 == 0 else "yuv444p"
        stream.time_base = stream.codec_context.time_base = clock
        if rotation:
            stream.set_display_rotation(rotation)
        heard: Any = None
        if sound is not None:
            heard = out.add_stream(sound_codec, rate=sound_rate, layout="mono")
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(drawn(number, size), format="rgb24")
            frame.pts, frame.time_base = round((times[number] if times is not None else number / rate) / clock), clock
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound is not None:
            _write_sound(out, heard, sound, sound_rate, sound_start)
    return file


def recording(file: Path, sound: NDArray[np.float32], *, codec: str = "pcm_s16le", rate: int = 48_000) -> Path:
    """Write a file of sound alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as out:
        _write_sound(out, out.add_stream(codec, rate=rate, layout="mono"), sound, rate, 0.0)
    return file


def _write_sound(out: Any, stream: Any, sound: NDArray[np.float32], rate: int, start: float) -> None:
    mixer = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate)
    step = stream.codec_context.frame_size or 1024
    for begin in range(0, len(sound), step):
        frame = AudioFrame.from_ndarray(sound[None, begin : begin + step], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, begin + round(start * rate), Fraction(1, rate)
        for mixed in mixer.resample(frame):
            out.mux(stream.encode(mixed))
    out.mux(stream.encode(None))


def ramp(seconds: float, rate: int = 48_000) -> NDArray[np.float32]:
    """Sound whose value is the time in units of 100 seconds."""
    return (np.arange(round(seconds * rate)) / rate / 100).astype(np.float32)


def sweep(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """A tone at these times that rises from 200 Hz by 100 Hz a second, so that no moment sounds like another."""
    return 0.5 * np.sin(2 * np.pi * (200 * times + 50 * times * times))


def swept(seconds: float, rate: int = 48_000) -> NDArray[np.float32]:
    return sweep(np.arange(round(seconds * rate)) / rate).astype(np.float32)


def lag_of(found: NDArray[np.float32], start: float) -> int:
    """By how many samples a sweep at 48 kHz comes too early: the shift at which it is most like what should be heard."""
    moments = (round(start * 48_000) + np.arange(len(found))) / 48_000
    errors = {shift: float(np.abs(found - sweep(moments + shift / 48_000)).mean()) for shift in range(-5, 6)}
    return min(errors, key=errors.__getitem__)


def source(
    file: Path,
    start: float = 0.0,
    frames: int = 16,
    fps: float = 16.0,
    size: tuple[int, int] = SIZE,
    crop: Crop | None = None,
    beside: Path | None = None,
) -> Source:
    """A window of a file, uncropped."""
    companions = (("sound", beside),) if beside is not None else ()
    return Source("clips", file, Caption("a film"), crop or Crop(size, size, (0, 0)), Window(start, frames, fps), companions)

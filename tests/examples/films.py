"""What a film is, seen and heard: read with PyAV alone."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Film:
    """A file as a player finds it: frames [F, H, W, 3], sound [samples] of one channel, and when each begins, in seconds."""

    codecs: tuple[str, ...]
    fps: Fraction
    frames: NDArray[np.uint8]
    begins: float
    sound: NDArray[np.float32]
    sample_rate: int
    sound_begins: float
    comment: str

    @property
    def seconds(self) -> float:
        """How long its frames are shown."""
        return float(len(self.frames) / self.fps)

    def loudness(self) -> NDArray[np.float64]:
        """The root of the mean square of what is heard during each frame."""
        edges = [round(number / self.fps * self.sample_rate) for number in range(len(self.frames) + 1)]
        return np.array([np.sqrt(np.mean(self.sound[begin:end] ** 2)) for begin, end in pairwise(edges)])


def read_film(file: Path) -> Film:
    """Decode a file from its beginning to its end; the sound is empty where it has none."""
    with av.open(str(file)) as container:
        pictures = container.streams.video[0]
        rate = pictures.average_rate
        assert rate is not None
        decoded = list(container.decode(pictures))
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]).astype(np.uint8)
        codecs = tuple(stream.codec_context.name for stream in container.streams)
        comment = container.metadata.get("comment", "")
        begins = float(decoded[0].time or 0)
    sound, sample_rate, sound_begins = read_sound(file)
    return Film(codecs, rate, frames, begins, sound, sample_rate, sound_begins, comment)


def read_sound(file: Path) -> tuple[NDArray[np.float32], int, float]:
    """A file's sound [samples], the samples a second, and when it begins; no samples where it has none."""
    with av.open(str(file)) as container:
        if not container.streams.audio:
            return np.zeros(0, np.float32), 0, 0.0
        stream = container.streams.audio[0]
        mixer = av.AudioResampler(format="flt", layout="mono")
        decoded = list(container.decode(stream))
        parts = [part.to_ndarray()[0] for frame in decoded for part in mixer.resample(frame)]
        return np.concatenate(parts), stream.rate, float(decoded[0].time or 0)

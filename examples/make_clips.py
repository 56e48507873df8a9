"""Draw short films of talking faces, with sound and captions, to try a video family on.

    python examples/make_clips.py FOLDER

    FOLDER/films/      mp4 files of several sizes, lengths, frame rates and sample rates, a caption beside each
    FOLDER/pictures/   a still picture and its caption
    FOLDER/given/      what validation is given: a face that is in no film, and a voice

Mouths open as far as the voice is loud, so there is something to learn from the sound. Everything is drawn and computed
from the numbers below, the same each time; what is in FOLDER already is kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageDraw

H264 = "libx264" if "libx264" in av.codecs_available else "mpeg4"
QUALITY = {"libx264": {"qp": "20", "threads": "1"}, "mpeg4": {"qscale": "3"}}
"""The same for every frame: what x264 chooses by itself is not the same each time."""
COLOURS = {
    "yellow": (240, 205, 70),
    "green": (110, 190, 95),
    "blue": (105, 150, 235),
    "pink": (240, 150, 175),
    "orange": (240, 150, 60),
    "white": (238, 238, 232),
    "navy": (30, 40, 90),
    "brown": (95, 60, 45),
}
INK, TONGUE = (40, 20, 30), (200, 70, 80)
VOWELS = ((730, 1090), (270, 2290), (530, 1840), (570, 840), (300, 870))
"""The first two formants of a, i, e, o and u, in hertz."""
OCTAVES = {"low": 110.0, "high": 220.0}
PACES = {"slowly": 2.5, "fast": 4.5}
"""Syllables a second."""
LISTENING = 0.04
"""Seconds of sound that a mouth follows."""
SMOOTHING = 2
"""Faces are drawn so many times larger, so that edges are smooth."""

Sound = NDArray[np.float32]


@dataclass(frozen=True)
class Face:
    """Who talks: colours, and the voice."""

    colour: str
    background: str
    voice: str
    pace: str

    @property
    def caption(self) -> str:
        """What is seen and heard."""
        return f"a round {self.colour} face on a {self.background} background talks {self.pace} in a {self.voice} voice"


@dataclass(frozen=True)
class Film:
    """One mp4 file: who talks, and what kind of file it is."""

    face: Face
    size: tuple[int, int]
    fps: Fraction
    seconds: float
    sample_rate: int


FILMS = {
    "1-square": Film(Face("yellow", "navy", "low", "slowly"), (128, 128), Fraction(25), 2.0, 48_000),
    "2-wide": Film(Face("green", "white", "high", "fast"), (192, 128), Fraction(30), 2.0, 44_100),
    "3-broadcast": Film(Face("blue", "brown", "low", "fast"), (192, 128), Fraction(30_000, 1001), 2.5, 48_000),
    "4-cinema": Film(Face("pink", "navy", "high", "slowly"), (128, 128), Fraction(24), 2.0, 22_050),
    "5-longer": Film(Face("orange", "white", "high", "fast"), (128, 128), Fraction(24_000, 1001), 12.0, 48_000),
}
STILL = Face("blue", "white", "low", "slowly")
GUEST = Face("pink", "brown", "high", "fast")
GIVEN_SECONDS = 2.0


def voice(face: Face, seconds: float, rate: int) -> Sound:
    """What a face says, [samples] within -1 and 1: vowels one after the other, each as loud as its stress, some of them pauses."""
    pitch, pace = OCTAVES[face.voice], PACES[face.pace]
    generator = np.random.default_rng(list(face.caption.encode()))
    count = int(seconds * pace) + 1
    vowels = np.array(VOWELS)[generator.integers(len(VOWELS), size=count)]  # [syllables, 2]
    stress = generator.uniform(0.25, 1, count) * (generator.random(count) > 0.15)
    time = np.arange(round(seconds * rate)) / rate
    syllable = (time * pace).astype(int)
    phase = 2 * np.pi * pitch * (time + 0.0004 * np.sin(2 * np.pi * 5 * time))  # a voice is never quite steady
    made = np.zeros_like(time)
    for harmonic in range(1, int(min(4000, rate / 2) / pitch)):
        near = np.exp(-(((harmonic * pitch - vowels) / (80 + 0.12 * vowels)) ** 2)).sum(axis=1)  # [syllables]
        made += (0.02 + near)[syllable] / np.sqrt(harmonic) * np.sin(harmonic * phase)
    made *= stress[syllable] * np.sin(np.pi * (time * pace % 1))
    made *= 0.7 / np.abs(made).max()
    return np.asarray(made, np.float32)


def loudness(sound: Sound, rate: int, time: float) -> float:
    """The root of the mean square of what is heard around a time."""
    middle, reach = round(time * rate), round(LISTENING / 2 * rate)
    heard = sound[max(middle - reach, 0) : middle + reach]
    return float(np.sqrt(np.mean(heard**2))) if len(heard) else 0.0


def drawn(face: Face, size: tuple[int, int], opening: float, time: float) -> Image.Image:
    """A face with its mouth `opening` open, from 0 to 1; it sways a little and blinks every two seconds."""
    width, height = (SMOOTHING * side for side in size)
    image = Image.new("RGB", (width, height), COLOURS[face.background])
    draw = ImageDraw.Draw(image)
    unit = min(width, height) / 2
    centre = width / 2 + 0.06 * unit * np.sin(2 * np.pi * 0.4 * time), height / 2

    def ellipse(x: float, y: float, across: float, down: float, colour: tuple[int, int, int]) -> None:
        """An ellipse around a place on the face; everything in units of half the picture."""
        left, top = centre[0] + (x - across) * unit, centre[1] + (y - down) * unit
        draw.ellipse((left, top, left + 2 * across * unit, top + 2 * down * unit), fill=colour)

    ellipse(0, 0, 0.8, 0.9, COLOURS[face.colour])
    shut = 1.0 < time % 2 < 1.12
    for side in (-0.3, 0.3):
        ellipse(side, -0.28, 0.14, 0.02 if shut else 0.14, INK if shut else (255, 255, 255))
        if not shut:
            ellipse(side, -0.26, 0.06, 0.07, INK)
    ellipse(0, 0.36, 0.3, 0.03 + 0.3 * opening, INK)
    ellipse(0, 0.36 + 0.2 * opening, 0.18, 0.1 * opening, TONGUE)
    return image.resize(size, Image.Resampling.BOX)


def write_film(file: Path, film: Film) -> None:
    """Write a film, pictures and sound beginning together."""
    sound = voice(film.face, film.seconds, film.sample_rate)
    times = [float(number / film.fps) for number in range(int(film.seconds * film.fps))]
    heard = np.array([loudness(sound, film.sample_rate, time + float(1 / film.fps) / 2) for time in times])
    with av.open(str(file), "w", format="mp4") as out:
        pictures: Any = out.add_stream(H264, rate=film.fps, options=QUALITY[H264])
        pictures.width, pictures.height = film.size
        pictures.pix_fmt = "yuv420p"
        voices: Any = out.add_stream("aac", rate=film.sample_rate, layout="mono", bit_rate=96_000)
        for time, opening in zip(times, heard / heard.max(), strict=True):
            pixels = np.asarray(drawn(film.face, film.size, float(opening), time))
            out.mux(pictures.encode(VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(pictures.encode(None))
        encode_sound(out, voices, sound, film.sample_rate)


def write_sound(file: Path, face: Face) -> None:
    """Write what a face says as a wav file."""
    with av.open(str(file), "w", format="wav") as out:
        encode_sound(out, out.add_stream("pcm_s16le", rate=48_000, layout="mono"), voice(face, GIVEN_SECONDS, 48_000), 48_000)


def encode_sound(out: Any, stream: Any, sound: Sound, rate: int) -> None:
    """Put sound [samples] into a stream of a file that is being written."""
    mixer = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate, frame_size=stream.codec_context.frame_size)
    frame = AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    for part in [*mixer.resample(frame), *mixer.resample(None)]:
        out.mux(stream.encode(part))
    out.mux(stream.encode(None))


def make(file: Path, write: Callable[[Path], Any]) -> None:
    """Write a file, unless it is there; it gets its name when it is whole."""
    if file.exists():
        print(f"{file} is there already and was kept")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_name(f".new-{file.name}")
    write(made)
    os.replace(made, file)
    print(file)


def make_clips(folder: Path) -> None:
    """Write everything below a folder."""
    for name, film in FILMS.items():
        make(folder / f"films/{name}.mp4", partial(write_film, film=film))
        make(folder / f"films/{name}.txt", partial(Path.write_text, data=film.face.caption))
    make(folder / "pictures/still.png", drawn(STILL, (128, 128), 0.0, 0.0).save)
    make(folder / "pictures/still.txt", partial(Path.write_text, data=STILL.caption))
    make(folder / "given/face.png", drawn(GUEST, (160, 160), 0.0, 0.0).save)
    make(folder / "given/voice.wav", partial(write_sound, face=GUEST))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python make_clips.py FOLDER, a folder for the films, which is made if it is not there")
    make_clips(Path(sys.argv[1]))

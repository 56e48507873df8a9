"""The sound of exactly a window: decoded from a little before it, resampled as the whole file would be, and cut."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray
from torch import Tensor

from tunesmith import Unreadable

from .containers import AUDIO_FORMATS, VIDEO_FORMATS, audio_stream, end_of, opened, origin_of, video_stream

LEAD = 0.5
"""Seconds before a window that are decoded for the codec's sake: its first packets after a jump are not yet right."""
CONTEXT = 0.1
"""Seconds on either side of a window that are resampled with it, so that its edges are as in the whole file."""
JITTER = 0.02
"""Seconds by which a frame's time may differ from where the one before it ends, and still follow it without a gap."""
UNSEEKABLE = frozenset({"mp3", "aac"})
"""Formats in which times after a jump are guesses: their packets are counted from the beginning."""
RATES = range(1_000, 768_001)
"""Sample rates that are believed."""
MIXING = {"rematrix_maxval": "1.0"}
"""Channels are mixed so that the sum is no louder than they are: of two equal ones comes the same."""


class NoSound(Unreadable):
    """A file that has no sound."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, "it has no sound")


@dataclass(frozen=True)
class Part:
    """A part of a file's sound: from `start` seconds on, so many samples at a rate, of so many channels.

    The clock of the sound beside a clip, or on its own, begins with the sound, that of a clip's own with its first frame.
    """

    start: float
    samples: int
    rate: int
    channels: int

    @property
    def end(self) -> float:
        """When it ends, in seconds."""
        return self.start + self.samples / self.rate


def sound_of(container: InputContainer, file: Path, origin: float) -> tuple[int, int, float]:
    """Sample rate, channels, and when the sound ends in seconds after `origin`; zeros if there is none."""
    stream = audio_stream(container)
    if stream is None or stream.codec_context.sample_rate not in RATES:
        return 0, 0, 0.0
    return stream.codec_context.sample_rate, stream.codec_context.layout.nb_channels, max(0.0, _end(container, stream, file) - origin)


def read_sound(file: Path, part: Part, *, of_clip: bool, lacks: float) -> Tensor:
    """A part of a file's sound, float32 [channels, samples] in [-1, 1].

    What lies after the file's end is silence; Unreadable if that is more than `lacks` seconds, NoSound if there is none.
    """
    source = _Source(file, VIDEO_FORMATS if of_clip else AUDIO_FORMATS, of_clip, part)
    values, first = source.read()
    if source.ends + lacks < part.end:
        raise Unreadable(file, f"its sound ends after {source.ends:.3f} seconds, and the part to be used after {part.end:.3f}")
    made = resampled(values, source.rate, part.rate)
    begin = round(part.start * part.rate) - first * part.rate // source.rate
    out = np.zeros((part.channels, part.samples), dtype=np.float32)
    cut = made[:, begin : begin + part.samples]
    out[:, : cut.shape[1]] = cut
    return torch.from_numpy(out).clamp_(-1.0, 1.0)


def is_silent(file: Path, *, of_clip: bool) -> bool:
    """Whether every sample of a file's sound is zero, or it has none; it is decoded until one is not."""
    with opened(file, VIDEO_FORMATS if of_clip else AUDIO_FORMATS) as container:
        stream = audio_stream(container)
        if stream is None:
            return True
        with suppress(av.InvalidDataError):  # as where sound is read: what was there before the damage counts
            return not any(_sounds(frame) for frame in container.decode(stream))
        return True


def _sounds(frame: AudioFrame) -> bool:
    """Whether a sample of a frame is not zero, which for unsigned bytes is 128."""
    zero = 128 if frame.format.name.startswith("u8") else 0
    return bool((frame.to_ndarray() != zero).any())


def resampled(values: NDArray[np.float32], source: int, rate: int) -> NDArray[np.float32]:
    """Samples [channels, n] at another rate; the first one stays where it is."""
    if source == rate or not values.shape[1]:
        return values
    layout = layout_of(values.shape[0])
    resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(values), format="fltp", layout=layout)
    frame.sample_rate = source
    frame.time_base = Fraction(1, source)
    frame.pts = 0
    made = [part.to_ndarray() for given in (frame, None) for part in resampler.resample(given)]
    return np.concatenate(made, axis=1) if made else np.zeros((values.shape[0], 0), dtype=np.float32)


class _Source:
    """The samples of a file around a part, at the file's own rate."""

    def __init__(self, file: Path, formats: str, of_clip: bool, part: Part) -> None:
        self.file = file
        self.formats = formats
        self.of_clip = of_clip
        self.part = part
        self.rate = 0
        self.ends = 0.0

    def read(self) -> tuple[NDArray[np.float32], int]:
        """The samples [channels, n] that the part is made of with some on either side, and the number of the first.

        `ends` becomes when the sound that was found ends, in seconds. Where a jump leads too far it is read without one.
        """
        found = self._read(jump=self.part.start > LEAD + CONTEXT)
        return found if found is not None else self._read(jump=False) or (np.zeros((self.part.channels, 0), dtype=np.float32), 0)

    def _read(self, jump: bool) -> tuple[NDArray[np.float32], int] | None:
        """What `read` gives; None if a jump led nowhere, or behind the place where the samples should begin.

        They begin at a moment at which both rates have a sample, so that resampling from there on meets the same moments
        as resampling from the beginning does.
        """
        with opened(self.file, self.formats) as container:
            stream = audio_stream(container)
            if stream is None:
                raise NoSound(self.file)
            self.rate = stream.codec_context.sample_rate
            if self.rate not in RATES:
                raise Unreadable(self.file, f"its sample rate, {self.rate}, is none")
            origin = origin_of(video_stream(container, self.file) if self.of_clip else stream)
            unit = self.rate // math.gcd(self.rate, self.part.rate)
            first = max(0, int((self.part.start - CONTEXT) * self.rate) // unit * unit)
            end = math.ceil((self.part.end + CONTEXT) * self.rate)
            values = np.zeros((self.part.channels, max(1, end - first)), dtype=np.float32)
            self.ends = 0.0
            for place, samples in self._placed(container, stream, origin, first / self.rate - LEAD if jump else None):
                if jump and not self.ends and place > first:
                    return None
                begin, stop = max(place, first), min(place + samples.shape[1], end)
                if begin < stop:
                    values[:, begin - first : stop - first] = samples[:, begin - place : stop - place]
                self.ends = (place + samples.shape[1]) / self.rate
                if place + samples.shape[1] >= end:
                    break
        if jump and not self.ends:
            return None
        return values[:, : max(0, min(end, round(self.ends * self.rate)) - first)], first

    def _placed(
        self, container: InputContainer, stream: AudioStream, origin: float, goal: float | None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Decoded samples with their places, from a little before `goal` seconds on, or from the beginning."""
        mixer = AudioResampler(format="fltp", layout=layout_of(self.part.channels), rate=self.rate, options=MIXING)
        follows: int | None = None
        for frame in self._frames(container, stream, None if goal is None else origin + goal):
            if frame.sample_rate != self.rate:
                raise Unreadable(self.file, f"its sample rate is {frame.sample_rate}, and {self.rate} by its header")
            place = self._place(frame, follows, stream, origin)
            frame.pts = None
            for mixed in mixer.resample(frame):
                yield place, mixed.to_ndarray().astype(np.float32, copy=False)
                place += mixed.samples
            follows = place

    def _place(self, frame: AudioFrame, follows: int | None, stream: AudioStream, origin: float) -> int:
        """The number of a frame's first sample. Clocks that are coarser than samples are made exact by whole frames."""
        base = frame.time_base
        if frame.pts is None or base is None:
            return follows or 0
        place = round((float(frame.pts * base) - origin) * self.rate)
        if follows is not None:
            return follows if abs(place - follows) <= JITTER * self.rate else place
        coarse = float(base) * self.rate
        if coarse > 1 and frame.samples:
            second = round((origin_of(stream) - origin) * self.rate) + self._first_samples()
            whole = second + round((place - second) / frame.samples) * frame.samples
            return whole if abs(whole - place) <= coarse else place
        return place

    def _first_samples(self) -> int:
        """How many samples the file's first frame has, which is shorter than the others in some codecs."""
        with opened(self.file, self.formats) as container:
            stream = audio_stream(container)
            return 0 if stream is None else next((frame.samples for frame in container.decode(stream)), 0)

    def _frames(self, container: InputContainer, stream: AudioStream, goal: float | None) -> Iterator[AudioFrame]:
        """Decoded frames, from one at or before `goal` in the container's clock on."""
        base = stream.time_base or Fraction(1, self.rate)
        skips = container.format.name in UNSEEKABLE
        if goal is not None and not skips:
            try:
                container.seek(int(goal / base), stream=stream)
            except av.FFmpegError:
                return
        incomplete = goal is not None
        for packet in container.demux(stream):
            if skips and goal is not None and packet.size and packet.pts is not None and float(packet.pts * base) < goal:
                continue
            try:
                decoded = packet.decode()
            except av.InvalidDataError:
                return  # a file that was cut off ends in a packet that is no whole one: what was there before it counts
            for frame in decoded:
                if not incomplete:
                    yield frame
                incomplete = False  # codecs take off of the first one after a jump what belongs to the file's beginning


def _end(container: InputContainer, stream: AudioStream, file: Path) -> float:
    """When a stream of sound ends, in seconds of the container's clock; a header that promises more than there is is not believed."""
    base = stream.time_base or Fraction(0)
    told = float(((stream.start_time or 0) + (stream.duration or 0)) * base)
    name = container.format.name
    bits = re.match(r"pcm_[a-z]*(\d+)", stream.codec_context.name)
    if name in ("wav", "w64") and bits:
        second = stream.codec_context.sample_rate * stream.codec_context.layout.nb_channels * int(bits[1]) / 8
        return min(told, file.stat().st_size / second) if told else file.stat().st_size / second
    if "mp4" in name and stream.duration:
        return told
    if container.duration and len(container.streams) > 1:
        return end_of(container, stream) or told
    ends = [float((packet.pts + (packet.duration or 0)) * base) for packet in container.demux(stream) if packet.pts is not None]
    return max(ends, default=0.0)


def layout_of(channels: int) -> str:
    """What FFmpeg calls one or two channels."""
    return "mono" if channels == 1 else "stereo"

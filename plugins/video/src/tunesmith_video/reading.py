"""Files that are given to a sample of validation: sound, and films that guide."""

from __future__ import annotations

from pathlib import Path

from av.stream import Disposition
from torch import Tensor

from tunesmith import Probe, Unreadable, Wanted, Window, center_crop, covering

from .clips import Limits, read_frames, window_frames
from .containers import AUDIO_FORMATS, VIDEO_FORMATS, opened
from .kinds import AudioKind, VideoKind
from .sound import NoSound, Part, read_sound

LIMITS = Limits(pixels=100_000_000, frames=2_000_000)
"""What is decoded at most of a film that guides."""
MOST_VALUES = 2**31
"""So many numbers, eight gigabytes, are made of it at most."""
LACKS = 0.1
"""Seconds of sound that may be missing at the end of what the header promises."""


def probe_audio(file: Path) -> Probe:
    """What the header tells of a file with sound; Unreadable if it is none, or has none that can be decoded."""
    probe = (VideoKind if _is_film(file) else AudioKind).probe(file)
    if probe.sound <= 0:
        raise NoSound(file)
    return probe


def probe_control(file: Path) -> Probe:
    """What the header tells of a film; Unreadable if it is none."""
    if not _is_film(file):
        raise Unreadable(file, "it has no moving pictures")
    return VideoKind.probe(file)


def read_audio(file: Path, wanted: Wanted) -> Tensor:
    """All sound of a file, [channels, samples] in [-1, 1] as wanted; that of a film from its first frame on.

    Unreadable if it has none, or none that can be decoded.
    """
    probe = probe_audio(file)
    samples = round(probe.sound * wanted.sample_rate)
    if not samples:
        raise NoSound(file)
    return read_sound(file, Part(0.0, samples, wanted.sample_rate, wanted.channels), of_clip=probe.width > 0, lacks=LACKS)


def read_control(file: Path, wanted: Wanted) -> Tensor:
    """All of a film, re-timed, [3, F, height, width] in [-1, 1]: resized to just cover the size, and cut from the middle.

    Unreadable if it cannot be decoded, or is too long to be kept.
    """
    probe = probe_control(file)
    frames = window_frames(probe.seconds, probe.fps, wanted.fps)
    most = MOST_VALUES // (3 * wanted.width * wanted.height)
    if frames > most:
        size = f"{wanted.width}x{wanted.height}"
        raise Unreadable(file, f"it has {frames} frames at {wanted.fps:g} fps; {most} of {size} are read at most: shorten it")
    crop = center_crop(covering(probe.size, (wanted.width, wanted.height)))
    return read_frames(file, Window(0.0, frames, wanted.fps), crop, LIMITS)


def _is_film(file: Path) -> bool:
    """Whether there are moving pictures in a file, and not only the cover of what is heard."""
    with opened(file, f"{VIDEO_FORMATS},{AUDIO_FORMATS}") as container:
        return any(not stream.disposition & Disposition.attached_pic for stream in container.streams.video)

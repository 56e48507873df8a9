"""Sound out of videos, as files of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import OutputContainer
from numpy.typing import NDArray

from tunesmith import InputError, TunesmithError, Unreadable

from .containers import VIDEO_FORMATS, audio_stream, opened, origin_of, video_stream
from .kinds import VideoKind
from .sound import JITTER, NoSound

PARTIAL = ".partial-"
"""Files are written under names that begin so, and get their own when they are whole."""
CHUNK = 65_536
"""Samples of silence that are written at once."""
CONTAINERS = {
    "mov,mp4,m4a,3gp,3g2,mj2": ((".mp4", ".mov", ".m4v", ".3gp"), "mp4"),
    "matroska,webm": ((".mkv", ".webm"), "matroska"),
    "avi": ((".avi",), "avi"),
    "mpegts": ((".ts", ".m2ts", ".mts"), "mpegts"),
    "mpeg": ((".mpg", ".mpeg"), "mpeg"),
    "flv": ((".flv",), "flv"),
    "asf": ((".wmv",), "asf"),
    "ogg": ((".ogv",), "ogg"),
    "h264": ((".h264", ".264"), "h264"),
    "hevc": ((".hevc", ".265"), "hevc"),
}
"""By the name under which containers are read: endings that mean them where they are written, and their name for all others."""
WRITING = (av.FFmpegError, OSError, ValueError)
"""What PyAV raises where a container cannot be written."""


class Unwritten(TunesmithError):
    """A file that cannot be written, and why."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file, in a sentence, by its name below IN."""

    name: str
    told: str
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.name if self.name.isprintable() else ascii(self.name)}: {self.told}"


def split(source: Path, target: Path, strip: bool) -> Iterator[Outcome]:
    """Write the sound of each video below `source`, and with `strip` the video without it, to the same place below `target`.

    Sources are only read, and nothing that is there is written over; a file gets its name when it is whole.
    InputError if there is nothing to read or `target` lies in `source`.
    """
    files, home = _videos(source)
    real, into = Path(os.path.realpath(home)), Path(os.path.realpath(target))
    if into == real or (source.is_dir() and into.is_relative_to(real)):
        raise InputError(f"OUT, {target}, is IN or lies in it; give a folder elsewhere, so that the sources stay as they are")
    if target.exists() and not target.is_dir():
        raise InputError(f"OUT, {target}, is a file; give a folder, which is made if it is not there")
    if not files:
        raise InputError(f"{source} has no video; these endings are looked for: {', '.join(sorted(VideoKind.suffixes))}")
    taken: dict[Path, str] = {}
    for file in files:
        name = file.relative_to(home).as_posix()
        sound = target / Path(name).with_suffix(".wav")
        if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(real):
            yield Outcome(name, "left out: a link that leaves the folder is not followed", failed=True)
        elif sound in taken:
            yield Outcome(name, f"left out: {taken[sound]} has the same name but for its ending, and its sound would too", failed=True)
        else:
            taken[sound] = name
            heard = _made(name, file, sound, into, write_sound)
            yield heard
            if strip:
                seen = _made(name, file, target / name, into, write_pictures)
                if not seen.failed or seen != heard:  # one reason for both is told once
                    yield seen


def write_sound(file: Path, target: Path) -> None:
    """Write a video's sound as 16 bit WAV that begins with its first frame.

    NoSound if it has none, Unreadable if it is damaged, Unwritten if writing fails.
    """
    with opened(file, VIDEO_FORMATS) as container:
        stream = audio_stream(container)
        if stream is None:
            raise NoSound(file)
        origin = origin_of(video_stream(container, file))
        rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout
        base, mixer = stream.time_base or Fraction(1, rate), AudioResampler(format="s16", layout=layout.name, rate=rate)
        written = 0
        with _output(target, "wav") as out:
            sound = out.add_stream("pcm_s16le", rate=rate, layout=layout.name)

            def write(samples: NDArray[np.int16]) -> int:
                frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="s16", layout=layout.name)
                frame.sample_rate, frame.pts, frame.time_base = rate, written, Fraction(1, rate)
                with _writing("WAV"):
                    out.mux(sound.encode(frame))
                return frame.samples

            for frame in container.decode(stream):
                place = written if frame.pts is None else round((float(frame.pts * base) - origin) * rate)
                if abs(place - written) <= JITTER * rate and written:
                    place = written
                while place > written:  # sound that begins late, or pauses
                    written += write(np.zeros((1, min(CHUNK, place - written) * layout.nb_channels), dtype=np.int16))
                frame.pts = None
                for mixed in mixer.resample(frame):
                    samples = mixed.to_ndarray()[:, max(0, written - place) * layout.nb_channels :]
                    place += mixed.samples
                    if samples.shape[1]:
                        written += write(samples.astype(np.int16, copy=False))
            with _writing("WAV"):
                out.mux(sound.encode(None))


def write_pictures(file: Path, target: Path) -> None:
    """Write a video's pictures, as they are encoded and in a container of the same kind, without its sound.

    Unreadable if it is damaged, Unwritten if writing fails.
    """
    with opened(file, VIDEO_FORMATS) as container:
        stream = video_stream(container, file)
        endings, muxer = CONTAINERS.get(container.format.name, ((target.suffix.lower(),), None))
        with _output(target, None if target.suffix.lower() in endings else muxer) as out:
            written = out.format.name
            with _writing(written):
                copied = out.add_stream_from_template(stream)
            if stream.average_rate:  # a container without it makes readers guess, from a few times
                copied.codec_context.framerate = stream.average_rate
            for packet in container.demux(stream):
                if packet.size:
                    packet.stream = copied
                    with _writing(written):
                        out.mux(packet)


@contextmanager
def _output(target: Path, muxer: str | None) -> Iterator[OutputContainer]:
    """A container to write, of the kind that its ending says where none is given; closed at the end."""
    with _writing(muxer or target.suffix):
        out = av.open(os.fspath(target), mode="w", format=muxer)
    try:
        yield out
    except BaseException:
        with suppress(*WRITING):
            out.close()
        raise
    with _writing(out.format.name):
        out.close()


@contextmanager
def _writing(container: str) -> Iterator[None]:
    """What writing raises becomes Unwritten, so that it is not taken for damage of what is read."""
    try:
        yield
    except WRITING as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unwritten(f"as {container} ({reason})") from error


def _videos(source: Path) -> tuple[list[Path], Path]:
    """The videos of a folder, or the one that is named, and the folder that they lie in; InputError if there is none."""
    if source.is_file():
        return [source], source.parent
    if not source.is_dir():
        raise InputError(f"{source} is neither a folder nor a file")
    found: list[Path] = []
    for parent, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.suffix.lower() in VideoKind.suffixes), source


def _made(name: str, file: Path, target: Path, into: Path, write: Callable[[Path, Path], None]) -> Outcome:
    """Write one file under a name of its own until it is whole."""
    if target.exists():
        return Outcome(name, f"{target} is there already and is kept")
    partial = target.with_name(PARTIAL + target.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not Path(os.path.realpath(target.parent)).is_relative_to(into):
            return Outcome(name, f"left out: {target.parent} is a link that leaves OUT", failed=True)
        write(file, partial)
        os.replace(partial, target)
    except NoSound as error:
        return Outcome(name, error.reason)
    except Unreadable as error:
        return Outcome(name, error.reason, failed=True)
    except Unwritten as error:
        return Outcome(name, f"cannot write {target} {error}", failed=True)
    except OSError as error:
        return Outcome(name, f"cannot write {target}: {error.strerror}", failed=True)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return Outcome(name, f"wrote {target}")

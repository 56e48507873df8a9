"""Files of video and sound: opened safely, and what their headers tell."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from tunesmith import Unreadable

from .orientation import Orientation, orientation_of

VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,h264,hevc,ivf"
AUDIO_FORMATS = "wav,w64,mp3,flac,ogg,aac,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
"""What a file may be, whatever its ending. Playlists and the like are not among them: they name other files."""
DAMAGE = (ValueError, ArithmeticError, LookupError, MemoryError)
"""What damaged headers make of PyAV's own arithmetic, besides its own errors."""
MOST_BOXES = 10_000
"""So many parts of a file are looked through for its index."""
CUT_OFF = "its index is missing: it was probably cut off; copy or download it again"
MIN_RATE, MAX_RATE = 0.01, 1_000_000.0
"""Frames a second that are believed."""
FAST = 1_000.0
"""A mean rate above this is a clock's rather than the frames', where the container itself tells a lower one."""


@dataclass(frozen=True)
class Picture:
    """What a container says of its pictures: their upright size, their mean rate, and how they are turned.

    `origin` is when the first frame is shown, in seconds of the container's clock; None where frames have no times.
    """

    size: tuple[int, int]
    fps: float
    origin: float | None
    orientation: Orientation


@contextmanager
def opened(file: Path, formats: str) -> Iterator[InputContainer]:
    """The opened container; what the system and decoders raise within becomes Unreadable.

    No other file and no network is touched, whatever the file says.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for ever
            raise Unreadable(file, "not a file with content but a folder, pipe or device")
        with _opened(file, formats) as container:
            yield container
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        told = f"cannot be read ({reason})" if isinstance(error, OSError) and error.filename else f"cannot be decoded ({reason})"
        raise Unreadable(file, told) from error
    except OSError as error:
        raise Unreadable(file, f"cannot be read ({error.strerror or error})") from error
    except DAMAGE as error:
        raise Unreadable(file, f"cannot be decoded ({error or type(error).__name__})") from error


def video_stream(container: InputContainer, file: Path) -> VideoStream:
    """The stream of moving pictures, cover pictures aside; Unreadable if there is none that can be decoded."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise Unreadable(file, "its codec is not known here")
            return stream
    raise Unreadable(file, CUT_OFF if _lacks_index(file) else "it has no moving pictures")


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The first stream of sound that can be decoded, or None."""
    for stream in container.streams.audio:
        context = stream.codec_context
        if context is not None and context.sample_rate > 0 and context.layout.nb_channels > 0:
            return stream
    return None


def picture_of(container: InputContainer, file: Path) -> Picture:
    """What the container's header says of its pictures; nothing is decoded."""
    stream = video_stream(container, file)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise Unreadable(file, "it has no picture size: its pictures are missing or damaged")
    timed = stream.start_time is not None
    fps = float((stream.average_rate if timed else stream.guessed_rate) or stream.guessed_rate or 0)
    if fps > FAST and stream.guessed_rate:  # the mean of a few frames whose times vary, told in their clock's ticks
        fps = min(fps, float(stream.guessed_rate))
    if not MIN_RATE <= fps <= MAX_RATE:
        raise Unreadable(file, f"its frame rate, {fps:g} a second, is none")
    orientation = orientation_of(container, stream, file)
    size = orientation.of_size(_square(stream, (width, height)))
    return Picture(size, fps, origin_of(stream) if timed else None, orientation)


def extent_of(container: InputContainer, file: Path, picture: Picture) -> tuple[int, float]:
    """How many frames there are, for how many seconds; packets are counted only where the container does not say.

    Unreadable if there are none.
    """
    stream = video_stream(container, file)
    frames, seconds = 0, 0.0
    told = bool(stream.average_rate) and picture.origin is not None and _is_whole(stream, file)
    if told and stream.frames > 0 and stream.duration:
        seconds = float(stream.duration * (stream.time_base or 0))
        frames = min(stream.frames, max(1, round(picture.fps * seconds)))
    elif told and container.duration:
        seconds = max(0.0, (end_of(container, stream) or 0.0) - (picture.origin or 0.0))
        frames = round(seconds * picture.fps)
    if frames < 1:
        with opened(file, VIDEO_FORMATS) as again:
            frames, end = _last_of(again, video_stream(again, file))
        seconds = frames / picture.fps if end is None or picture.origin is None else end - picture.origin
    if frames < 1 or seconds <= 0:
        raise Unreadable(file, "it has no frames")
    even = frames / picture.fps  # what clocks round
    return frames, even if abs(seconds - even) < 0.5 / picture.fps else seconds


def origin_of(stream: VideoStream | AudioStream) -> float:
    """When a stream begins, in seconds of the container's clock."""
    return float((stream.start_time or 0) * (stream.time_base or 0))


def end_of(container: InputContainer, stream: VideoStream | AudioStream) -> float | None:
    """When a stream ends, in seconds of the container's clock, from packets near the container's end; None if there are none."""
    goal = (container.start_time or 0) + (container.duration or 0)
    for back in (1_000_000, 5_000_000, 30_000_000):
        try:
            container.seek(max(0, goal - back))
        except av.FFmpegError:
            return None
        last = _last_of(container, stream)[1]
        if last is not None:
            return last
    return None


def _last_of(container: InputContainer, stream: VideoStream | AudioStream) -> tuple[int, float | None]:
    """How many packets of a stream there are from here on, and when the last of them ends."""
    count, ends = 0, 0.0
    timed = False
    base = stream.time_base or Fraction(0)
    step = float(1 / stream.average_rate) if isinstance(stream, VideoStream) and stream.average_rate else 0.0
    with suppress(av.FFmpegError, *DAMAGE):  # what comes before the damage counts
        for packet in container.demux(stream):
            if packet.size:
                count += 1
            if packet.size and packet.pts is not None:
                timed = True
                ends = max(ends, float(packet.pts * base) + (float(packet.duration * base) if packet.duration else step))
    return count, ends if timed else None


def _is_whole(stream: VideoStream, file: Path) -> bool:
    """Whether the last picture that the container's index knows lies within the file, which may have been cut off."""
    entries = stream.index_entries
    if not len(entries):
        return True
    last = entries[-1]
    return last is None or last.pos + last.size <= file.stat().st_size


def _lacks_index(file: Path) -> bool:
    """Whether a file is an mp4, and none of the boxes that it consists of is its index, or that is not whole."""
    length, place = file.stat().st_size, 0
    with file.open("rb") as read:
        for _ in range(MOST_BOXES):
            read.seek(place)
            head = read.read(16)
            if not place and head[4:8] != b"ftyp":
                return False
            size = int.from_bytes(head[8:16] if head[:4] == b"\0\0\0\1" else head[:4], "big")
            place += size
            if head[4:8] == b"moov":
                return place > length
            if size < 8 or place >= length:
                return True
    return False


def _square(stream: VideoStream, size: tuple[int, int]) -> tuple[int, int]:
    """The size with square pixels, where a header tells believably that they are not."""
    ratio = stream.sample_aspect_ratio
    if ratio is None or not Fraction(1, 4) <= ratio <= 4:
        return size
    return max(1, round(size[0] * ratio)), size[1]


def _opened(file: Path, formats: str) -> InputContainer:
    options = {"protocol_whitelist": "file", "format_whitelist": formats}
    try:
        return av.open(f"file:{os.path.abspath(file)}", mode="r", options=options, metadata_errors="replace")
    except (av.InvalidDataError, av.ArgumentError, EOFError) as error:  # also of formats that are not allowed
        with file.open("rb") as read:
            first = read.read(12)
        if _lacks_index(file):
            raise Unreadable(file, CUT_OFF) from error
        head = "not a film or sound that is read here, or its header is damaged"
        raise Unreadable(file, f"{head} (it begins with {first!r})" if first else "the file is empty") from error

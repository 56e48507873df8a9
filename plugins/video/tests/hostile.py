"""Files of video and sound such as users have and attackers make; needs PyAV and numpy and nothing else.

`make_clips(folder)` and `make_sound(folder)` write them and say of each, by its name below the folder, what must become of
it: USED by a dataset of clips of at least 5 frames at 16 a second, NAMED with a reason, or EITHER of the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

USED, NAMED, EITHER = "used", "named", "either"
SIZE = (64, 48)
FFMPEG_H264 = "libx264" if "libx264" in av.codecs_available else "mpeg4"


def film(
    file: Path,
    frames: int = 32,
    fps: int = 16,
    *,
    size: tuple[int, int] = SIZE,
    codec: str = FFMPEG_H264,
    format: str | None = None,
    times: list[float] | None = None,
    rotation: int = 0,
    sound: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A sound film whose frames grow lighter."""
    clock = Fraction(1, 90_000) if times else Fraction(1, fps)
    with av.open(str(file), "w", format=format, container_options=container_options or {}) as out:
        stream: Any = out.add_stream(codec, rate=fps, options=options or {"g": "8"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p" if size[0] % 2 == 0 and size[1] % 2 == 0 else "yuv444p"
        stream.time_base = stream.codec_context.time_base = clock
        if rotation:
            stream.set_display_rotation(rotation)
        heard: Any = out.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), 16 + 200 * number // max(1, frames), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round((times[number] if times else number / fps) / clock), clock
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if heard is not None:
            _tone(out, heard, frames / fps, 16_000)
    return file


def recording(file: Path, seconds: float = 4.0, codec: str = "pcm_s16le", loud: float = 0.5, format: str | None = None) -> Path:
    """A file with a tone."""
    with av.open(str(file), "w", format=format) as out:
        _tone(out, out.add_stream(codec, rate=16_000, layout="mono"), seconds, 16_000, loud)
    return file


def _tone(out: Any, stream: Any, seconds: float, rate: int, loud: float = 0.5) -> None:
    values = (loud * np.sin(np.arange(round(seconds * rate)) / 8)).astype(np.float32)
    mixer = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate)
    step = stream.codec_context.frame_size or 1024
    for begin in range(0, len(values), step):
        frame = av.AudioFrame.from_ndarray(values[None, begin : begin + step], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
        for mixed in mixer.resample(frame):
            out.mux(stream.encode(mixed))
    out.mux(stream.encode(None))


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


def _changed(change: Callable[[bytes], bytes], **settings: Any) -> Callable[[Path], object]:
    """A film with its bytes changed."""

    def make(file: Path) -> None:
        film(file, **settings)
        file.write_bytes(change(file.read_bytes()))

    return make


def _cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * share)]


def _with_size(width: int, height: int) -> Callable[[bytes], bytes]:
    """The picture's size in the sample description replaced; the codec's own stays."""

    def change(content: bytes) -> bytes:
        at = max(content.find(b"avc1", content.find(b"stsd")), content.find(b"mp4v", content.find(b"stsd"))) + 4 + 24
        return content[:at] + width.to_bytes(2, "big") + height.to_bytes(2, "big") + content[at + 4 :]

    return change


def _without_pictures(content: bytes) -> bytes:
    """The payload zeroed."""
    start = content.find(b"mdat") + 4
    length = int.from_bytes(content[start - 8 : start - 4], "big") - 8
    return content[:start] + bytes(length) + content[start + length :]


def _scratched(content: bytes) -> bytes:
    """Some bytes of the payload replaced."""
    values = bytearray(content)
    generator = np.random.default_rng(7)
    for place in generator.integers(len(values) // 4, len(values) // 2, 30):
        values[place] = int(generator.integers(256))
    return bytes(values)


def _empty_film(file: Path) -> None:
    """Headers and no frame."""
    with av.open(str(file), "w") as out:
        stream: Any = out.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        out.start_encoding()


def _picture(codec: str, muxer: str) -> Callable[[Path], object]:
    def make(file: Path) -> None:
        with av.open(str(file), "w", format=muxer) as out:
            stream: Any = out.add_stream(codec, rate=1)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "rgb24" if codec == "png" else "rgb8"
            frame = av.VideoFrame.from_ndarray(np.zeros((SIZE[1], SIZE[0], 3), np.uint8), format="rgb24")
            out.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            out.mux(stream.encode(None))

    return make


def _loop(file: Path) -> None:
    file.symlink_to(file.name)


HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>"
FAST = {"movflags": "faststart"}
_GAPS = [0.0, 0.05, 0.06, 0.3, 0.4, 0.41, 0.42, 0.9, 1.0, 1.5, 1.6, 1.7, 1.71, 1.9, 2.0, 2.2]

CLIPS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "plain.mp4": (USED, lambda file: film(file, sound=True)),
    "LOUD.MP4": (USED, lambda file: film(file)),
    "two\nlines \N{CLAPPER BOARD}.mp4": (USED, lambda file: film(file)),
    "file:..%2F.mp4": (USED, lambda file: film(file)),
    "-i.mkv": (USED, lambda file: film(file)),
    "really_matroska.mp4": (USED, lambda file: film(file, format="matroska")),
    "no_duration.mkv": (USED, lambda file: film(file, container_options={"live": "1"})),
    "bare.h264": (USED, lambda file: film(file, codec="libx264", format="h264") if FFMPEG_H264 == "libx264" else film(file, format="m4v")),
    "odd.mkv": (USED, lambda file: film(file, size=(63, 47))),
    "tiny.mkv": (USED, lambda file: film(file, size=(2, 2), codec="ffv1")),
    "sideways.mp4": (USED, lambda file: film(file, rotation=90)),
    "variable.mp4": (USED, lambda file: film(file, len(_GAPS), times=_GAPS)),
    "b_frames.mp4": (USED, lambda file: film(file, options={"g": "30", "bf": "3"})),
    "fast.mp4": (USED, lambda file: film(file, 120, 60)),
    "slow.avi": (USED, lambda file: film(file, 8, 2, codec="mpeg4")),
    "broadcast.ts": (USED, lambda file: film(file, sound=True)),
    "fragmented.mp4": (USED, lambda file: film(file, container_options={"movflags": "frag_keyframe+empty_moov"})),
    "cut_off_behind_its_header.mp4": (USED, _changed(_cut(0.6), frames=64, codec="mpeg4", container_options=FAST)),
    "cut_off.mkv": (USED, _changed(_cut(0.6), frames=64, codec="mpeg4")),
    "scratched.mp4": (EITHER, _changed(_scratched, container_options=FAST)),
    "zeroed.mp4": (NAMED, _changed(_without_pictures)),
    "zero_bytes.mp4": (NAMED, _written(b"")),
    "html.mp4": (NAMED, _written(HTML)),
    "noise.avi": (NAMED, _written(np.random.default_rng(1).bytes(20_000))),
    "no_frames.mp4": (NAMED, _empty_film),
    "without_index.mp4": (NAMED, _changed(_cut(0.7))),
    "hundred_bytes.mov": (NAMED, _changed(lambda content: content[:100])),
    "sound_alone.mp4": (NAMED, lambda file: recording(file, codec="aac")),
    "png.mp4": (NAMED, _picture("png", "image2pipe")),
    "gif.mov": (NAMED, _picture("gif", "gif")),
    "one_frame.mp4": (NAMED, lambda file: film(file, 1)),
    "huge_by_its_header.mp4": (EITHER, _changed(_with_size(60_000, 60_000), codec="mpeg4")),
    "ten_hours.mkv": (NAMED, lambda file: film(file, 4, times=[0.0, 1.0, 2.0, 36_000.0])),
    "playlist.mp4": (NAMED, _written(b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nplain.mp4\n#EXT-X-ENDLIST\n")),
    "concatenation.mkv": (NAMED, _written(b"ffconcat version 1.0\nfile plain.mp4\n")),
    "description.mp4": (NAMED, _written(b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n")),
    "loop.mp4": (NAMED, _loop),
    "nowhere.mp4": (NAMED, lambda file: file.symlink_to("not_there.mp4")),
    "pipe.mp4": (NAMED, lambda file: os.mkfifo(file)),
    "folder.mp4": (NAMED, lambda file: file.mkdir()),
}
"""Clips by name: what must become of them, and how they are made."""


def _lying(field: int, value: bytes) -> Callable[[Path], object]:
    """A WAV whose header says something else at an offset from its `fmt ` chunk."""

    def make(file: Path) -> None:
        content = recording(file).read_bytes()
        at = content.index(b"fmt ") + 8 + field
        file.write_bytes(content[:at] + value + content[at + len(value) :])

    return make


def _lying_length(file: Path) -> None:
    content = recording(file).read_bytes()
    at = content.index(b"data") + 4
    file.write_bytes(content[:at] + (2**31 - 100).to_bytes(4, "little") + content[at + 4 :])


def _no_samples(file: Path) -> None:
    content = recording(file).read_bytes()
    file.write_bytes(content[: content.index(b"data") + 4] + bytes(4))


def _cut_recording(codec: str, share: float) -> Callable[[Path], object]:
    def make(file: Path) -> None:
        content = recording(file, 10, codec).read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return make


SOUND: dict[str, tuple[str, Callable[[Path], object]]] = {
    "plain.wav": (USED, recording),
    "LOUD.WAV": (USED, recording),
    "plain.flac": (USED, lambda file: recording(file, codec="flac")),
    "really_flac.mp3": (USED, lambda file: recording(file, codec="flac", format="flac")),
    "lying_length.wav": (USED, _lying_length),
    "cut_off.mp3": (USED, _cut_recording("libmp3lame", 0.5)),
    "cut_off.flac": (USED, _cut_recording("flac", 0.6)),
    "cut_off.wav": (USED, _cut_recording("pcm_s16le", 0.5)),
    "cut_off.m4a": (NAMED, _cut_recording("aac", 0.7)),
    "no_rate.wav": (NAMED, _lying(4, bytes(4))),
    "no_channels.wav": (NAMED, _lying(2, bytes(2))),
    "absurd_rate.wav": (NAMED, _lying(4, b"\xff\xff\xff\x7f")),
    "silent.wav": (NAMED, lambda file: recording(file, loud=0.0)),
    "short.wav": (NAMED, lambda file: recording(file, 0.2)),
    "no_samples.wav": (NAMED, _no_samples),
    "zero_bytes.ogg": (NAMED, _written(b"")),
    "html.mp3": (NAMED, _written(HTML)),
    "noise.wav": (NAMED, _written(np.random.default_rng(2).bytes(20_000))),
    "loop.wav": (NAMED, _loop),
    "pipe.wav": (NAMED, lambda file: os.mkfifo(file)),
}
"""Recordings by name, for intervals of a second: what must become of them, and how they are made."""


def make_clips(folder: Path) -> dict[str, str]:
    """Write every hostile clip; what must become of each, by name."""
    return _made(CLIPS, folder)


def make_sound(folder: Path) -> dict[str, str]:
    """Write every hostile recording; what must become of each, by name."""
    return _made(SOUND, folder)


def _made(files: dict[str, tuple[str, Callable[[Path], object]]], folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, make) in files.items():
        make(folder / name)
    return {name: fate for name, (fate, _) in files.items()}

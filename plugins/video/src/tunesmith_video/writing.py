"""Clips that validation makes, as files: films that every player plays, with their sound, their recipe and a poster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.codec import UnknownCodecError
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tunesmith import Clip, Media, write_image

from .sound import layout_of, resampled

ENCODERS = ("libx264", "libopenh264", "h264")
"""Encoders of H.264, the first that can be opened is used; `h264` is whichever else there is."""
ALWAYS = "mpeg4"
"""FFmpeg's own encoder, which needs nothing else."""
OPTIONS = {"libx264": {"crf": "17", "preset": "medium", "bf": "0"}}
"""Nearly as good as the picture; no frame waits for a later one, so that the first is shown at once by players that ignore edit lists."""
BITS_PER_PIXEL = 0.5
"""Of encoders that are told a rate of bits instead of a quality."""
BIT_RATES = 500_000, 100_000_000
SOUND_RATES = frozenset({8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000})
"""What players take of AAC; sound at another rate is resampled to `USUAL_RATE`."""
USUAL_RATE = 48_000
SAMPLES = 1024
"""Of a frame of AAC."""
NEAR = 1e-3
"""Frames a second by which a rate that was written with few decimals differs from the n * 1000 / 1001 that is meant."""


def write_clip(media: Media, folder: Path) -> list[Path]:
    """Write a Clip as NAME.mp4 and its first frame as NAME.png; one of a single frame as NAME.png alone.

    Both hold the recipe as JSON: the film as its comment, the picture as PNG files of validation do. A side of odd length
    is made even by repeating its last row or column. The sound begins with the first frame; what would be heard after the
    last one is cut off. A film gets its name when it is whole. ValueError if the content is no Clip of the stated shapes.
    """
    clip = media.content
    _check(clip)
    poster = Media("image", media.name, Image.fromarray(_pixels(clip.frames[0])), media.recipe)
    if len(clip.frames) == 1:
        return write_image(poster, folder)
    film = folder / f"{media.name}.mp4"
    made = film.with_name(f".{film.name}.new")
    try:
        _write_film(made, clip, json.dumps(dict(media.recipe), default=str))
        os.replace(made, film)
    finally:
        made.unlink(missing_ok=True)
    return [film, *write_image(poster, folder)]


def exact_rate(fps: float) -> Fraction:
    """Frames a second as a fraction: 23.976 is 24000/1001; ValueError if there is no such rate."""
    if not 0 < fps < 1000:
        raise ValueError(f"a clip of {fps} frames a second cannot be shown; it should have more than 0 and less than 1000")
    whole = round(fps * 1001 / 1000)
    broadcast = Fraction(whole * 1000, 1001)
    rate = Fraction(fps).limit_denominator(1001)
    return broadcast if whole and rate.denominator != 1 and abs(float(broadcast) - fps) < NEAR else rate


def choose_encoder(size: tuple[int, int], rate: Fraction) -> str:
    """The name of the first encoder of films that can be opened here for a size (width, height)."""
    return next((name for name in ENCODERS if _opens(name, size, rate)), ALWAYS)


def _check(clip: object) -> None:
    if not isinstance(clip, Clip):
        raise ValueError(f"media of kind 'clip' hold a Clip, not a {type(clip).__name__}")
    shape = tuple(clip.frames.shape)
    if len(shape) != 4 or shape[3] != 3 or not all(shape) or str(clip.frames.dtype) != "torch.uint8":
        raise ValueError(f"a clip's frames are uint8 [F, H, W, 3], not {clip.frames.dtype} {list(shape)}")
    if clip.audio is not None and (clip.audio.ndim != 2 or clip.audio.shape[0] not in (1, 2) or clip.sample_rate < 1):
        raise ValueError(f"a clip's sound is [1 or 2, samples] at a rate, not {list(clip.audio.shape)} at {clip.sample_rate}")


def _write_film(file: Path, clip: Clip, comment: str) -> None:
    rate = exact_rate(clip.fps)
    with av.open(f"file:{os.path.abspath(file)}", "w", format="mp4", options={"movflags": "+faststart"}) as out:
        out.metadata["comment"] = comment
        height, width = (side + side % 2 for side in clip.frames.shape[1:3])
        name = choose_encoder((width, height), rate)
        shown = out.add_stream(name, rate=rate, options=OPTIONS.get(name, {}))
        if not isinstance(shown, VideoStream):
            raise TypeError(f"{name} encodes no pictures")
        _set_up(shown.codec_context, name, (width, height), rate)
        packets: list[Packet[Any]] = list(_encoded_frames(shown, clip.frames, rate))
        sound = _sound_of(clip, rate)
        if sound is not None:
            values, sample_rate = sound
            heard = out.add_stream("aac", rate=sample_rate, layout=layout_of(len(values)))
            packets += _encoded_sound(heard, values, sample_rate)
        out.mux(sorted(packets, key=_decoded_at))


def _set_up(context: VideoCodecContext, name: str, size: tuple[int, int], rate: Fraction) -> None:
    """The size, clock and colours of a stream, and how good it is where the encoder has no measure of quality."""
    context.width, context.height = size
    context.pix_fmt = "yuv420p"
    context.framerate = rate
    context.time_base = 1 / rate
    context.colorspace, context.color_range = int(Colorspace.ITU709), int(ColorRange.MPEG)
    context.color_primaries, context.color_trc = int(ColorPrimaries.BT709), int(ColorTrc.BT709)
    if name not in OPTIONS:
        wanted = round(BITS_PER_PIXEL * size[0] * size[1] * float(rate))
        context.bit_rate = min(max(wanted, BIT_RATES[0]), BIT_RATES[1])
    if name == ALWAYS:
        context.qmin, context.qmax = 1, 4


def _opens(name: str, size: tuple[int, int], rate: Fraction) -> bool:
    """Whether there is an encoder of this name and what it needs: a library, or a device."""
    try:
        context = CodecContext.create(name, "w")
        if not isinstance(context, VideoCodecContext):
            return False
        _set_up(context, name, size, rate)
        context.open()
    except (UnknownCodecError, av.FFmpegError):
        return False
    return True


def _encoded_frames(stream: VideoStream, frames: Tensor, rate: Fraction) -> Iterator[Packet[VideoStream]]:
    converter = VideoReformatter()
    for number, pixels in enumerate(frames):
        whole = _pixels(pixels)
        even = np.pad(whole, ((0, whole.shape[0] % 2), (0, whole.shape[1] % 2), (0, 0)), mode="edge")
        frame = converter.reformat(
            VideoFrame.from_ndarray(even, format="rgb24"),
            format="yuv420p",
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = number, 1 / rate
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _sound_of(clip: Clip, rate: Fraction) -> tuple[NDArray[np.float32], int] | None:
    """A clip's sound as far as its frames go, [channels, samples] and their rate; None if there is nothing to hear."""
    if clip.audio is None:
        return None
    samples = round(len(clip.frames) / rate * clip.sample_rate)
    values = clip.audio[:, :samples].detach().float().clamp(-1, 1).cpu().numpy()
    if not values.shape[1]:
        return None
    sample_rate = clip.sample_rate if clip.sample_rate in SOUND_RATES else USUAL_RATE
    return resampled(values, clip.sample_rate, sample_rate), sample_rate


def _encoded_sound(stream: AudioStream, values: NDArray[np.float32], sample_rate: int) -> Iterator[Packet[AudioStream]]:
    for begin in range(0, values.shape[1], SAMPLES):
        part = np.ascontiguousarray(values[:, begin : begin + SAMPLES])
        frame = AudioFrame.from_ndarray(part, format="fltp", layout=layout_of(len(values)))
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, begin, Fraction(1, sample_rate)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _decoded_at(packet: Packet[Any]) -> Fraction:
    """When a packet is decoded, in seconds: files are read in this order."""
    return (packet.dts or 0) * packet.time_base


def _pixels(frame: Tensor) -> NDArray[np.uint8]:
    """A frame, uint8 [H, W, 3], as an array of its own."""
    made: NDArray[np.uint8] = np.ascontiguousarray(frame.cpu().numpy())
    return made

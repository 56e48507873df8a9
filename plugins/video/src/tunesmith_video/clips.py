"""Frames of a clip: those that its window's times show, decoded from the keyframe before it and no further than needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from torch import Tensor

from tunesmith import Crop, Unreadable, Window

from .containers import VIDEO_FORMATS, Picture, opened, picture_of, video_stream

SCALING = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""Resized with antialiasing, as pictures are, and with the colour of every pixel."""
BACK = (0.0, 2.0, 10.0, 60.0)
"""Seconds before the window that are sought, one after the other, until the first frame comes early enough."""
LATE = 0.5
"""Seconds by which the first frame may come after the window's beginning, where a file cannot be decoded from its very start."""
EXACT = 1e-6
"""Seconds by which times are equal: they come as whole numbers of a clock."""


@dataclass(frozen=True)
class Limits:
    """What is decoded at most: pixels of a frame, and frames on the way through a window."""

    pixels: int
    frames: int


def window_frames(seconds: float, source_fps: float, fps: float) -> int:
    """How many frames a clip has when it is re-timed: each of them shows a source frame within half a frame of its time."""
    return max(1, int((seconds - 0.5 / source_fps) * fps + EXACT) + 1)


def read_frames(file: Path, window: Window, crop: Crop, limits: Limits) -> Tensor:
    """A window's frames, float32 [3, F, H, W] in [-1, 1]; Unreadable if they cannot be decoded.

    Frame k shows the last source frame that comes no later than half a source frame after `start + k / fps`. Frames are
    resized to `crop.resize` as they come, turned upright, and `crop.size` is cut out.
    """
    width, height = crop.size
    made = torch.empty((3, window.frames, height, width))
    with opened(file, VIDEO_FORMATS) as container:
        picture = picture_of(container, file)
        painter = _Painter(picture, crop)
        for first, last, frame in _chosen(_Decoder(container, file, picture, limits), window):
            painter.paint(frame, made[:, first])
            made[:, first + 1 : last] = made[:, first : first + 1]
    return made


class _Painter:
    """Makes pixels of frames: one converter for all of them."""

    def __init__(self, picture: Picture, crop: Crop) -> None:
        self.orientation = picture.orientation
        self.stored = picture.orientation.of_size(crop.resize)
        self.left, self.top = crop.offset
        self.width, self.height = crop.size
        self.converter = VideoReformatter()

    def paint(self, frame: VideoFrame, target: Tensor) -> None:
        """Write the frame's part of the picture to `target`, [3, H, W], with the frame's own matrix and range of colours.

        Channel by channel, while it is in the processor's cache: that takes a fraction of the time.
        """
        width, height = self.stored
        resized = self.converter.reformat(
            frame, width, height, "gbrp", interpolation=SCALING, src_color_range=frame.color_range, dst_color_range=ColorRange.JPEG
        )
        green, blue, red = resized.planes
        for channel, plane in enumerate((red, green, blue)):
            stored = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)[:height, :width]
            upright = self.orientation.of_pixels(stored)[self.top : self.top + self.height, self.left : self.left + self.width]
            target[channel].copy_(torch.from_numpy(np.ascontiguousarray(upright))).div_(127.5).sub_(1.0)


class _Decoder:
    """Decodes the pictures of a container that was just opened."""

    def __init__(self, container: InputContainer, file: Path, picture: Picture, limits: Limits) -> None:
        self.container = container
        self.file = file
        self.picture = picture
        self.limits = limits

    def frames(self, first: float) -> Iterator[tuple[float, VideoFrame]]:
        """Frames with their times in the order they are shown, beginning no later than `first`.

        Where seeking leads too far the file is opened again and an earlier place sought, at last its beginning.
        """
        if self.picture.origin is not None and first > 0:
            for back in BACK:
                begun, found = self._begun(self._from(self.container, max(0.0, first - back)))
                if begun is not None and begun <= first + EXACT:
                    yield from found
                    return
            with opened(self.file, VIDEO_FORMATS) as container:
                yield from self._from(container, None)
        else:
            yield from self._from(self.container, None)

    def _begun(self, frames: Iterator[tuple[float, VideoFrame]]) -> tuple[float | None, Iterator[tuple[float, VideoFrame]]]:
        """When the first of the frames is shown, and all of them."""
        first = next(frames, None)
        return (None, frames) if first is None else (first[0], chain([first], frames))

    def _from(self, container: InputContainer, start: float | None) -> Iterator[tuple[float, VideoFrame]]:
        """Frames from the keyframe at or before `start` on; from the very first if None."""
        stream = video_stream(container, self.file)
        context, base, origin = stream.codec_context, stream.time_base or Fraction(0), self.picture.origin
        self._check(context.width, context.height)
        if not context.is_open:
            context.options = {"max_pixels": str(2 * self.limits.pixels + 65_536)}  # decoders count what they align, too
            context.thread_count = 1  # several files are decoded at once, and threads of one decode frames that nobody wants
        if start is not None and origin is not None and base:
            try:
                container.seek(int((origin + start) / base), stream=stream)
            except av.FFmpegError:
                return
        last = float("-inf")
        for number, frame in enumerate(container.decode(stream)):
            if number >= self.limits.frames:
                raise Unreadable(self.file, f"more than max_source_frames = {self.limits.frames} frames would be decoded")
            self._check(frame.width, frame.height)
            time = number / self.picture.fps if frame.pts is None or origin is None else float(frame.pts * base) - origin
            if time > last:  # a frame whose clock runs backwards is never shown
                last = time
                yield time, frame

    def _check(self, width: int, height: int) -> None:
        if width * height > self.limits.pixels:
            raise Unreadable(self.file, f"frames of {width}x{height} have more pixels than max_pixels = {self.limits.pixels}")


def _chosen(decoder: _Decoder, window: Window) -> Iterator[tuple[int, int, VideoFrame]]:
    """The frames that a window shows, each with the numbers, from and up to, of the window's frames that show it."""
    times = [window.start + number / window.fps for number in range(window.frames)]
    half = 0.5 / decoder.picture.fps
    shown = 0
    before: tuple[float, VideoFrame] | None = None
    for time, frame in decoder.frames(times[0]):
        if before is None:
            if time > times[0] + LATE:
                break
        else:
            until = _reach(times, shown, time - min(half, (time - before[0]) / 2))
            if until > shown:
                yield shown, until, _undamaged(before, decoder.file)
                shown = until
        if shown == window.frames:
            return
        before = time, frame
    if before is None:
        raise Unreadable(decoder.file, f"no frame can be decoded {times[0]:g} seconds into it")
    ends = before[0] + max(2 * half, float((before[1].duration or 0) * (before[1].time_base or 0)))
    if times[-1] > ends + half:
        raise Unreadable(decoder.file, f"its pictures end after {ends:.3f} seconds, before what its header promises")
    yield shown, window.frames, _undamaged(before, decoder.file)


def _reach(times: Sequence[float], number: int, turn: float) -> int:
    """The number of the first of the window's frames whose time is not before `turn`."""
    while number < len(times) and times[number] < turn - EXACT:
        number += 1
    return number


def _undamaged(shown: tuple[float, VideoFrame], file: Path) -> VideoFrame:
    time, frame = shown
    if frame.is_corrupt:
        raise Unreadable(file, f"the frame {time:.3f} seconds into it is damaged")
    return frame

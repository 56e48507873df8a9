"""How a film is turned: phones write films sideways and a matrix that says so."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

_PROJECTION = b"\x76\x70"
"""The element of Matroska files that turns pictures."""
_HEADER_BYTES = 65_536


@dataclass(frozen=True)
class Orientation:
    """What makes stored pictures upright: first a transposition, then mirroring."""

    transposed: bool = False
    mirrored_across: bool = False
    mirrored_down: bool = False

    def of_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The upright (width, height) of stored pictures, or the stored one of upright ones."""
        return (size[1], size[0]) if self.transposed else size

    def of_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Stored pixels [H, W] made upright."""
        if self.transposed:
            pixels = pixels.T
        if self.mirrored_across:
            pixels = pixels[:, ::-1]
        return pixels[::-1] if self.mirrored_down else pixels


UPRIGHT = Orientation()


def orientation_of(container: InputContainer, stream: VideoStream, file: Path) -> Orientation:
    """How a stream's pictures are turned, by quarters, as the container says."""
    if "mp4" in container.format.name:
        with file.open("rb") as read:
            return next((_from_matrix(matrix) for track, matrix in _matrices(read) if track == stream.id), UPRIGHT)
    if "matroska" in container.format.name:
        with file.open("rb") as read:
            if _PROJECTION in read.read(_HEADER_BYTES):
                return _of_first_frame(file)
    return UPRIGHT


def _from_matrix(matrix: tuple[int, int, int, int]) -> Orientation:
    """From a, b, c, d of x' = ax + cy, y' = bx + dy; angles between quarters go to the nearer one."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, mirrored_across=c < 0, mirrored_down=b < 0)
    return Orientation(False, mirrored_across=a < 0, mirrored_down=d < 0)


def _of_first_frame(file: Path) -> Orientation:
    with av.open(f"file:{file.absolute()}", mode="r", options={"protocol_whitelist": "file"}) as container:
        quarters = next((round(frame.rotation / 90) % 4 for frame in container.decode(video=0)), 0)
    return _from_matrix(((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[quarters])


def _matrices(file: BinaryIO) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """The number and matrix of every track of an MP4 or QuickTime file; none where its boxes are damaged."""
    file.seek(0, 2)
    for kind, start, end in _boxes(file, 0, file.tell()):
        if kind == b"moov":
            for inner, first, last in _boxes(file, start, end):
                if inner == b"trak":
                    yield from (_track(file, at) for name, at, to in _boxes(file, first, last) if name == b"tkhd" and to - at >= 84)


def _track(file: BinaryIO, start: int) -> tuple[int, tuple[int, int, int, int]]:
    file.seek(start)
    head = file.read(104)
    wide = head[0] == 1  # times of 64 bit
    [number] = struct.unpack_from(">I", head, 20 if wide else 12)
    a, b, _, c, d = struct.unpack_from(">5i", head.ljust(104, b"\0"), 52 if wide else 40)
    return number, (a, b, c, d)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes between two places: kind, and where the content begins and ends."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        skip = 8
        if size == 1 and len(head) == 16:
            size, skip = int.from_bytes(head[8:], "big"), 16
        elif size == 0:
            size = end - start
        if size < skip:
            return
        yield kind, start + skip, min(start + size, end)
        start += size

"""Pictures from files: their size without decoding, and their pixels as a sample is trained on."""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from ..batch import Crop, Source
from ..kinds import Unreadable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Endings of the files that are looked at, in lower case."""
FORMATS: Mapping[re.Pattern[bytes], type[ImageFile]] = {
    re.compile(rb"\xff\xd8\xff"): JpegImageFile,
    re.compile(rb"\x89PNG\r\n\x1a\n"): PngImageFile,
    re.compile(rb"RIFF....WEBP", re.DOTALL): WebPImageFile,
}
"""What those files may be, whichever of the endings they have, by how they begin.

Opened by type and not by `Image.open`, whose limit of pixels is one for all of a process; `max_pixels` is a dataset's own.
"""
OTHER_SUFFIXES = frozenset([".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tif", ".tiff"])
"""Endings of other pictures, which are not read but are named, so that nobody waits for them in vain."""
MAX_PIXELS = 100_000_000
"""What is decoded where no table says otherwise."""
TRANSFORM = "image-2"
"""Names how pixels are made of a file and a crop; changes with it, so that nothing stale is read from a cache."""

Frames: TypeAlias = NDArray[np.uint8]
"""Decoded values from 0 to 255."""

_ORIENTATION = 0x0112
_TRANSPOSED: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_STEPS: Mapping[object, int] = {"L;2": 85, "L;4": 17}
"""Between two greys of the decoded picture, where the file has 2 or 4 bits."""
_SIDEWAYS = frozenset({5, 6, 7, 8})
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)
"""What decoders raise on damaged files."""


def probe(path: Path) -> tuple[int, int]:
    """The upright (width, height) of a picture, from its header alone; Unreadable if there is none."""
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def load_pixels(source: Source, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The sample's pixels, float32 [3, H, W] in [-1, 1]; Unreadable if the file cannot be decoded.

    The picture is turned upright, laid on white where it is transparent, resized with antialiasing (Lanczos) to
    `crop.resize`, and `crop.size` is cut out at `crop.offset`. One of more than `max_pixels` is not decoded.
    """
    with _opened(source.file) as file:
        image = _upright(file, source.file, max_pixels)
    return to_pixels(resize_and_crop(_rgb(image, ground="white"), source.crop))


def load_mask(path: Path, crop: Crop, max_pixels: int = MAX_PIXELS) -> Tensor:
    """A picture as float32 [1, H, W] in [0, 1], cut out as its sample is; Unreadable if it cannot be decoded.

    Grey values, in colours their mean. What is transparent is black, so that it does not count.
    """
    with _opened(path) as file:
        image = _upright(file, path, max_pixels)
    values = resize_and_crop(_rgb(image, ground="black"), crop)  # [H, W, 3]
    return torch.from_numpy(values).to(torch.float32).mean(dim=-1).div_(255)[None]


def resize_and_crop(frames: Image.Image | Frames, crop: Crop) -> Frames:
    """A decoded picture or frames as a crop wants them: resized with antialiasing (Lanczos), then cut out.

    Takes a picture, or bytes [H, W], [H, W, 3] or [F, H, W, 3]; returns bytes of as many dimensions.
    """
    if not isinstance(frames, Image.Image):
        if frames.ndim == 4:
            return np.stack([resize_and_crop(frame, crop) for frame in frames])
        frames = Image.fromarray(frames)
    if frames.size != crop.resize:
        frames = frames.resize(crop.resize, Image.Resampling.LANCZOS)
    left, top = crop.offset
    width, height = crop.size
    return np.array(frames.crop((left, top, left + width, top + height)), dtype=np.uint8)


def to_pixels(frames: Frames) -> Tensor:
    """Bytes in RGB, [H, W, 3] or [F, H, W, 3], as a sample's pixels: float32 [3, H, W] or [3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, 0).to(torch.float32).contiguous().div_(127.5).sub_(1.0)


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    """The opened picture; what the system and decoders raise within becomes Unreadable."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise Unreadable(path, "not a file with content but a folder, pipe or device")
        with path.open("rb") as file, _identified(path, file) as image:
            yield image
    except Image.DecompressionBombError as error:  # that of WebP itself, which needs memory for all pixels to be opened
        raise Unreadable(path, f"a WebP picture with too many pixels, whatever max_pixels ({error}); make it a JPEG or PNG file") from None
    except _BROKEN as error:
        if isinstance(error, OSError) and error.strerror:  # of the system, whose own message repeats the path
            raise Unreadable(path, f"cannot be read ({error.strerror})") from error
        raise Unreadable(path, f"cannot be decoded ({error or type(error).__name__})") from error


def _identified(path: Path, file: BinaryIO) -> ImageFile:
    """The picture in a file, of which only the header is read."""
    first = file.read(16)
    file.seek(0)
    try:
        for beginning, format in FORMATS.items():
            if beginning.match(first):
                return format(file)
    except SyntaxError:  # of the decoder: the header is not that of such a picture
        pass
    told = f"it begins with {first[:12]!r}" if first else "the file is empty"
    raise Unreadable(path, f"not a JPEG, PNG or WebP picture ({told})")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, as far as the header tells: for a PNG, `image.getexif()` would decode all pixels first.

    Where the EXIF data are damaged the picture counts as upright.
    """
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except _BROKEN:
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: ImageFile, path: Path, max_pixels: int) -> Image.Image:
    """The decoded picture, turned as its EXIF data say; Unreadable if it has too many pixels."""
    width, height = image.size
    if width * height > max_pixels:
        raise Unreadable(path, f"{width}x{height} are more pixels than max_pixels = {max_pixels}, so it is not decoded")
    turn = _TRANSPOSED.get(_orientation(image))
    _decoded_key(image)
    image.load()
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, ground: str) -> Image.Image:
    """The picture in RGB; 16 bit scaled down to 8, transparent parts laid on a ground."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _eight_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, ground), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bit with 8, and with an alpha channel where one value stands for transparent."""
    wide = np.asarray(image)
    grey = Image.fromarray(np.clip(np.rint(wide.astype(np.float64) / 257), 0, 255).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(wide == key, 0, 255).astype(np.uint8)))
    return grey


def _decoded_key(image: ImageFile) -> None:
    """Bring the value that stands for transparent, which a PNG tells in the file's depth, to that of the decoded picture."""
    key = image.info.get("transparency")
    stored = image.tile[0].args if image.tile else None
    if stored == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif stored in _GREY_STEPS and isinstance(key, int):
        image.info["transparency"] = key * _GREY_STEPS[stored]

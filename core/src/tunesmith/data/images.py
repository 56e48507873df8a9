"""Pictures from files: their size without decoding, and their pixels as a sample is trained on."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..batch import Crop, Source
from ..kinds import Unreadable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Endings of the files that are looked at, in lower case."""
FORMATS = ("JPEG", "PNG", "WEBP")
"""What those files may be, whichever of the endings they have."""
OTHER_SUFFIXES = frozenset([".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tif", ".tiff"])
"""Endings of other pictures, which are not read but are named, so that nobody waits for them in vain."""
TRANSFORM = "image-1"
"""Names how pixels are made of a file and a crop; changes with it, so that nothing stale is read from a cache."""

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
_SIDEWAYS = frozenset({5, 6, 7, 8})
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)
"""What decoders raise on damaged files."""


def probe(path: Path) -> tuple[int, int]:
    """The upright (width, height) of a picture, from its header alone; Unreadable if there is none."""
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def load_pixels(source: Source) -> Tensor:
    """The sample's pixels, float32 [3, H, W] in [-1, 1]; Unreadable if the file cannot be decoded.

    The picture is turned upright, laid on white where it is transparent, resized with antialiasing (Lanczos) to
    `crop.resize`, and `crop.size` is cut out at `crop.offset`.
    """
    with _opened(source.file) as file:
        image = _upright(file)
    return to_tensor(_cropped(_rgb(image), source.crop))


def load_mask(path: Path, crop: Crop) -> Tensor:
    """A picture's grey values as float32 [1, H, W] in [0, 1], cut out as its sample is; Unreadable if it cannot be decoded.

    What is transparent is black, so that it does not count.
    """
    with _opened(path) as file:
        image = _upright(file)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    else:
        image = _rgb(image)
    grey = _cropped(image.convert("L"), crop)
    return torch.from_numpy(np.array(grey, dtype=np.uint8)).to(torch.float32).div_(255)[None]


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 [3, H, W] in [-1, 1]."""
    values = np.array(image, dtype=np.uint8)  # [H, W, 3]
    return torch.from_numpy(values).permute(2, 0, 1).to(torch.float32).contiguous().div_(127.5).sub_(1.0)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The opened picture; what the system and decoders raise within becomes Unreadable."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise Unreadable(path, "not a file with content but a folder, pipe or device")
        with path.open("rb") as file:
            try:
                with Image.open(file, formats=FORMATS) as image:
                    yield image
            except UnidentifiedImageError:
                raise Unreadable(path, f"not a JPEG, PNG or WebP picture ({_beginning(file)})") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(path, f"too many pixels to be decoded safely ({error})") from None
    except _BROKEN as error:
        if isinstance(error, OSError) and error.strerror:  # of the system, whose own message repeats the path
            raise Unreadable(path, f"cannot be read ({error.strerror})") from error
        raise Unreadable(path, f"cannot be decoded ({error or type(error).__name__})") from error


def _beginning(file: BinaryIO) -> str:
    file.seek(0)
    first = file.read(12)
    return f"it begins with {first!r}" if first else "the file is empty"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, as far as the header tells: for a PNG, `image.getexif()` would decode all pixels first.

    Where the EXIF data are damaged the picture counts as upright.
    """
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except _BROKEN:
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image) -> Image.Image:
    """The decoded picture, turned as its EXIF data say."""
    turn = _TRANSPOSED.get(_orientation(image))
    image.load()
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB; 16 bit scaled down to 8, transparent parts laid on white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _cropped(image: Image.Image, crop: Crop) -> Image.Image:
    if image.size != crop.resize:
        image = image.resize(crop.resize, Image.Resampling.LANCZOS)
    left, top = crop.offset
    width, height = crop.size
    return image.crop((left, top, left + width, top + height))

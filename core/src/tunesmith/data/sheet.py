"""The contact sheet: samples of every bucket as they are trained on, after crop and window, with masks laid over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..batch import PIXELS, Source
from ..errors import InputError
from ..kinds import Unreadable
from ..words import printable
from .dataset import Bucket, Dataset
from .order import Draw, Order
from .pictures import MASK

MOST_ROWS, MOST_SAMPLES = 40, 8
"""Buckets on a sheet, and samples of each."""
FRAMES = 3
"""Frames of a clip: the first, the middle one and the last."""
TILE, TEXT, GAP = 144, 13, 6
"""Pixels: the height of a picture, of a letter, and between two things."""
WIDEST = 3 * TILE
"""Pixels of a picture's width; a wider one is made smaller."""
PAGE = 12 * TILE
"""Pixels of a row's width, which holds at least one sample."""
MARK = "tunesmith contact sheet"
"""What the file says of itself, so that nothing else is overwritten."""
BACKGROUND, INK, LEFT_OUT = "white", "black", (255, 0, 80)


@dataclass(frozen=True)
class _Cell:
    """A sample's frames side by side, and its name."""

    picture: Image.Image
    name: str


def check_place(place: Path, folders: Iterable[Path]) -> None:
    """InputError if a sheet cannot be written there, or would harm a file or be taken for a sample of one of the folders."""
    real = os.path.realpath(place)
    parent = os.path.dirname(real)
    if place.suffix.lower() != ".png":
        reason = "the sheet is a PNG file; give it a name such as sheet.png"
    elif os.path.isdir(real):
        reason = "is a folder; name a file in it, such as sheet.png"
    elif not os.path.isdir(parent):
        reason = f"there is no folder {parent}; make it, or name a file elsewhere"
    elif not os.access(parent, os.W_OK):
        reason = f"the folder {parent} cannot be written to; name a file elsewhere"
    elif os.path.exists(real) and not _is_sheet(real):
        reason = "there is a file of this name that is no contact sheet, and it is not overwritten; name another"
    elif any(os.path.isdir(folder) and Path(real).is_relative_to(os.path.realpath(folder)) for folder in folders):
        reason = "lies in the folder of a dataset, where it would be taken for a sample; name a file elsewhere"
    else:
        return
    raise InputError(f"--sheet {printable(str(place))}: {reason}")


def draw_sheet(order: Order, place: Path) -> tuple[str, list[str]]:
    """Draw the sheet of an order's first epoch, a row a bucket; the file, and a sentence for what cannot be decoded.

    InputError if the file cannot be written. A sample that cannot be decoded is crossed out.
    """
    buckets = [(dataset, bucket) for dataset in order.datasets.values() for bucket in dataset.buckets if bucket[0]]
    faults: list[str] = []
    rows = [(_label(dataset, bucket), list(_cells(order, dataset, bucket, faults))) for dataset, bucket in buckets[:MOST_ROWS]]
    if len(buckets) > MOST_ROWS:
        rows.append((f"and {len(buckets) - MOST_ROWS} more buckets", []))
    _write(_page(rows), Path(os.path.realpath(place)))
    return str(place), faults


def _label(dataset: Dataset, bucket: Bucket) -> str:
    width, height, frames = bucket
    count = len(dataset.buckets[bucket])
    batches = dataset.batches_of(count)
    clips = f", of {frames} frames the first, the middle one and the last" if frames > 1 else ""
    masks = "; what its mask leaves out is red" if MASK in dataset.companions else ""
    return f"{dataset.name} {width}x{height}{clips}: samples: {count}, batches an epoch: {batches}{masks}"


def _cells(order: Order, dataset: Dataset, bucket: Bucket, faults: list[str]) -> Iterator[_Cell]:
    """Some samples of a bucket, evenly spread: as many as a row has room for."""
    width, height, frames = bucket
    indexes = dataset.buckets[bucket]
    across = min(frames, FRAMES) * (_small((width, height))[0] + 1) + GAP
    shown = min(MOST_SAMPLES, len(indexes), max(1, PAGE // across))
    for number in range(shown):
        index = indexes[number * len(indexes) // shown]
        source = order.source(Draw(dataset, bucket, index, epoch=0, repeat=0))
        yield _Cell(_picture(dataset, source, faults), dataset.samples[index].name)


def _picture(dataset: Dataset, source: Source, faults: list[str]) -> Image.Image:
    """The sample's frames side by side, small."""
    try:
        pixels = dataset.load(source, PIXELS)  # [3, H, W] or [3, F, H, W]
        mask = dataset.load(source, MASK) if MASK in dataset.companions else None  # [1, H, W], [1, F, H, W] or [1, 1, H, W]
    except Unreadable as error:
        faults.append(f"{printable(str(source))} cannot be decoded ({error.reason}) and is crossed out in the contact sheet")
        return _crossed(_small(source.crop.size))
    frames = _frames(pixels)
    masks = [None] * len(frames) if mask is None else _frames(mask.expand(-1, pixels.shape[1], -1, -1) if pixels.ndim == 4 else mask)
    pictures = [_tile(frame, layer) for frame, layer in zip(frames, masks, strict=True)]
    strip = Image.new("RGB", (sum(picture.width + 1 for picture in pictures) - 1, pictures[0].height), BACKGROUND)
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width + 1
    return strip


def _frames(values: Tensor) -> list[Tensor]:
    """A picture, or `FRAMES` frames of a clip, [C, H, W] each."""
    if values.ndim == 3:
        return [values]
    count = values.shape[1]
    return [values[:, index] for index in sorted({0, count // 2, count - 1})]


def _tile(pixels: Tensor, mask: Tensor | None) -> Image.Image:
    """Pixels [3, H, W] in [-1, 1] as a small picture, red as far as the mask [1, H, W] is not 1."""
    values = pixels.add(1).mul(127.5).permute(1, 2, 0).numpy()  # [H, W, 3]
    if mask is not None:
        out = (1 - mask[0].numpy())[:, :, None] * 0.6  # [H, W, 1]
        values = values * (1 - out) + np.array(LEFT_OUT) * out
    image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return image.resize(_small(image.size), Image.Resampling.BOX)


def _small(size: tuple[int, int]) -> tuple[int, int]:
    """The size on the sheet, of the same aspect."""
    scale = min(TILE / size[1], WIDEST / size[0])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _crossed(size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, "lightgrey")
    pen = ImageDraw.Draw(image)
    right, bottom = size[0] - 1, size[1] - 1
    pen.rectangle((0, 0, right, bottom), outline=INK)
    pen.line((0, 0, right, bottom), fill=INK)
    pen.line((0, bottom, right, 0), fill=INK)
    return image


def _page(rows: list[tuple[str, list[_Cell]]]) -> Image.Image:
    """All rows, each below its label and above the names of its samples."""
    font = ImageFont.load_default(TEXT)
    line = TEXT + GAP
    widths = [sum(cell.picture.width + GAP for cell in cells) for _, cells in rows]
    labels = [int(font.getlength(_latin(label))) for label, _ in rows]
    heights = [line + (TILE + line if cells else 0) + GAP for _, cells in rows]
    page = Image.new("RGB", (max(*widths, *labels) + 2 * GAP, sum(heights) + GAP), BACKGROUND)
    pen = ImageDraw.Draw(page)
    top = GAP
    for (label, cells), height in zip(rows, heights, strict=True):
        pen.text((GAP, top), _latin(label), fill=INK, font=font)
        left = GAP
        for cell in cells:
            page.paste(cell.picture, (left, top + line))
            name = _latin(cell.name)
            while name and font.getlength(name) > cell.picture.width:
                name = name[:-1]
            pen.text((left, top + line + TILE + 1), name, fill=INK, font=font)
            left += cell.picture.width + GAP
        top += height
    return page


def _latin(text: str) -> str:
    """The text with what the font has no letters for as question marks."""
    return printable(text).encode("latin-1", "replace").decode("latin-1")


def _is_sheet(place: str) -> bool:
    """Whether a file is a sheet that was written here before."""
    if not os.path.isfile(place):  # opening a pipe would wait for ever
        return False
    try:
        with Image.open(place, formats=("PNG",)) as image:
            return image.info.get("Software") == MARK
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _write(page: Image.Image, place: Path) -> None:
    """Write the file beside its place and move it there."""
    said = PngInfo()
    said.add_text("Software", MARK)
    beside = place.with_name(f".{place.name[:100]}.{os.getpid()}.part")
    try:
        page.save(beside, "PNG", pnginfo=said)
        os.replace(beside, place)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise InputError(f"--sheet {printable(str(place))}: cannot be written ({error.strerror}); name a file elsewhere") from error

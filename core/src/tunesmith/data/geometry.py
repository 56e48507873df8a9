"""Which size a picture or clip is trained at, and which part of it: aspect buckets and crops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from ..batch import Crop
from ..config.datasets import PixelTable
from ..family import Family
from ..randomness import position_seed

Size = tuple[int, int]
"""(width, height)"""

SQUARE_EDGES: Mapping[float, int] = {0.25: 512, 0.5: 768, 1.0: 1024, 2.0: 1536, 4.0: 2048}
"""Megapixels near one of these mean squares of the usual edge, not of the square root."""
SNAP = 0.05
"""How near, in megapixels."""
SQUEEZE = 1.1
"""Pictures whose sides differ by less than this factor may be resized to a square as they are."""
MOST_CUT = 16
"""A picture of which less than one part in so many would be left after the crop is refused."""


@dataclass(frozen=True)
class Rule:
    """How sizes become targets: what `resolution` counts, the alignment, the aspect's decimals, and whether all is square."""

    kind: Literal["pixel", "area", "pixel_area"]
    resolution: float
    alignment: int
    rounding: int
    square: bool


@dataclass(frozen=True)
class Target:
    """The bucket's size, the size to resize to before the crop, and the bucket's aspect ratio; sizes are (width, height)."""

    size: Size
    resize: Size
    ratio: float


def rule_of(table: PixelTable, family: Family) -> Rule:
    """The rule of a dataset for a family; without a resolution, the area of the family's own size."""
    square = table.crop_aspect == "square"
    if table.resolution is None:
        width, height = family.defaults.size
        return Rule("pixel_area", math.sqrt(width * height), family.alignment, table.bucket_rounding, square)
    return Rule(table.resolution_type, table.resolution, family.alignment, table.bucket_rounding, square)


def chosen_aspect(size: Size, table: PixelTable, name: str) -> float | None:
    """The one of `crop_aspects` that a file of this (width, height) is cropped to; None where it keeps its own.

    The closest is the nearest by ratio, so that 1:2 is as far from 1:1 as 2:1 is. A drawn one depends on nothing but the
    file's name: it decides the bucket, which must be the same in every epoch and every run.
    """
    if table.crop_aspect == "closest":
        return min(table.crop_aspects, key=lambda aspect: abs(math.log(aspect * size[1] / size[0])))
    if table.crop_aspect == "random":
        return table.crop_aspects[position_seed(0, "aspect", name) % len(table.crop_aspects)]
    return None


@lru_cache(maxsize=65_536)  # a dataset has many files of one size
def target_size(size: Size, rule: Rule, aspect: float | None = None) -> Target:
    """The bucket of a picture of this (width, height), a function of nothing but the arguments.

    The size is that of the aspect ratio, which is the given one or else the picture's own rounded to `rule.rounding`
    decimals, both sides multiples of the alignment.
    The resized picture keeps its aspect and covers the target, with one exception that the reference makes: where a
    square target is larger than its area says (see `SQUARE_EDGES`), near-squares are resized to the square itself.
    """
    edge = _square_edge(rule)
    if rule.square:
        return Target((edge, edge), _cover(size, (edge, edge)), 1.0)
    portrait = size[0] < size[1] if aspect is None else aspect < 1
    ratio = aspect or _rounded_ratio(size, rule.rounding)
    width, height = _pixel_target(ratio, rule, portrait) if rule.kind == "pixel" else _area_target(ratio, rule)
    ratio = round(width / height, rule.rounding)
    cover = _cover if rule.kind == "pixel" else _grown
    resize = cover(size, (width, height))
    if ratio == 1.0:
        nearly_square = max(size) < SQUEEZE * min(size)
        if resize[0] < edge and nearly_square:
            resize = (edge, edge)
        elif min(resize) < edge:
            resize = _cover(size, (edge, edge))
        width = height = edge
    return Target((width, height), resize, ratio)


def too_elongated(target: Target) -> bool:
    """Whether the crop would throw nearly the whole picture away."""
    return math.prod(target.resize) > MOST_CUT * math.prod(target.size)


def measured(size: Size, kind: str) -> float:
    """How large a picture is in the unit of `resolution_type`: its shorter edge, megapixels, or the edge of a square of its area."""
    if kind == "pixel":
        return float(min(size))
    return math.prod(size) / 1e6 if kind == "area" else math.sqrt(math.prod(size))


def downsampled(target: Target, size: Size, table: PixelTable) -> Target:
    """The target of a picture larger than `maximum_size`: the same, but cut out of the picture as large as `downsample_to`.

    Where that would not cover the target's size, and of smaller pictures, the target stays as it is.
    """
    kind = table.resolution_type
    measure = measured(size, kind)
    if table.maximum_size is None or table.downsample_to is None or measure <= table.maximum_size:
        return target
    shrunk = table.downsample_to / measure
    factor = math.sqrt(shrunk) if kind == "area" else shrunk
    resize = round(size[0] * factor), round(size[1] * factor)
    covers = resize[0] >= target.resize[0] and resize[1] >= target.resize[1]
    return replace(target, resize=resize) if covers else target


def bucket_frames(frames: float, interval: int | None) -> int:
    """How many frames the bucket of a clip with so many has: a multiple of the interval, or all where they are fewer."""
    whole = int(frames)
    return whole - whole % interval if interval and whole >= interval else whole


def covering(size: Size, target: Size) -> Target:
    """What makes a frame of this size one of the target's: resized so that it just covers it, then cut."""
    return Target(target, _cover(size, target), target[0] / target[1])


def corner_crop(target: Target) -> Crop:
    """The top left corner of the resized picture."""
    return Crop(target.resize, target.size, (0, 0))


def center_crop(target: Target) -> Crop:
    """The middle of the resized picture; odd rests go to the right and the bottom."""
    left, top = ((outer - inner) // 2 for outer, inner in zip(target.resize, target.size, strict=True))
    return Crop(target.resize, target.size, (left, top))


def random_crop(target: Target, generator: np.random.Generator) -> Crop:
    """A part of the resized picture, every offset equally likely."""
    left, top = (int(generator.integers(outer - inner + 1)) for outer, inner in zip(target.resize, target.size, strict=True))
    return Crop(target.resize, target.size, (left, top))


def _aligned(value: float, alignment: int) -> int:
    return max(alignment, round(value / alignment) * alignment)


def _megapixels(rule: Rule) -> float:
    return rule.resolution if rule.kind == "area" else rule.resolution**2 / 1e6


def _square_edge(rule: Rule) -> int:
    if rule.kind == "pixel":
        return _aligned(rule.resolution, rule.alignment)
    megapixels = _megapixels(rule)
    for known, edge in SQUARE_EDGES.items():
        if abs(megapixels - known) < SNAP:
            return _aligned(edge, rule.alignment)
    return _aligned(math.sqrt(megapixels * 1e6), rule.alignment)


def _rounded_ratio(size: Size, rounding: int) -> float:
    """The aspect ratio to so many decimals, but never zero."""
    smallest = 10.0**-rounding
    return max(smallest, round(size[0] / size[1], rounding))


def _pixel_target(ratio: float, rule: Rule, portrait: bool) -> Size:
    """The shorter edge is the resolution."""
    edge = rule.resolution
    width, height = (edge, int(edge / ratio)) if portrait else (int(edge * ratio), edge)
    return _aligned(width, rule.alignment), _aligned(height, rule.alignment)


def _area_target(ratio: float, rule: Rule) -> Size:
    """The area is that of a square whose aligned edge comes nearest to the megapixels."""
    edge = _aligned(math.floor(math.sqrt(_megapixels(rule) * 1e6) + 1e-6), rule.alignment)
    if ratio == 1.0:
        return edge, edge
    return _aligned(edge * math.sqrt(ratio), rule.alignment), _aligned(edge / math.sqrt(ratio), rule.alignment)


def _cover(size: Size, target: Size) -> Size:
    """The smallest size of the picture's own aspect, one side exactly the target's, that covers the target."""
    by_height = target[1] * size[0] // size[1]
    if by_height >= target[0]:
        return by_height, target[1]
    return target[0], max(target[1], target[0] * size[1] // size[0])


def _grown(size: Size, target: Size) -> Size:
    """A cover that starts from the target's shorter edge and adds what is missing to both sides; areas round this way."""
    width, height = size
    if target[0] < target[1]:
        across, down = target[0], target[0] * height // width
    else:
        across, down = target[1] * width // height, target[1]
    if across < target[0]:
        missing = target[0] - across
        return target[0], down + missing * height // width
    missing = max(0, target[1] - down)
    return across + missing * width // height, down + missing

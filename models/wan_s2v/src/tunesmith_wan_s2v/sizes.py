"""The size of a video that shows a picture of any size."""

from __future__ import annotations

import math

AREA_480P = 480 * 832
AREA_720P = 720 * 1280
"""Most pixels of a frame in the two formats that Wan was trained for."""

_STEPS = 100
_LEAST_SCALE = 0.1


def output_size(height: int, width: int, area: int = AREA_480P, multiple: int = 64) -> tuple[int, int]:
    """The (height, width) of a video for a picture: multiples of `multiple`, no more than `area` pixels, nearly its aspect.

    The rule of Wan 2.2: of 100 evenly spaced scales, from the largest that could fit downwards, the first at which both
    sides, rounded up, keep within the area; pictures are not enlarged but for that rounding. Where none does, the sides
    of that area at the picture's aspect, rounded down, or those of the picture if they are smaller.
    """
    largest, smallest = _scales(height, width, area, multiple)
    for step in range(_STEPS):
        scale = largest - (largest - smallest) * step / _STEPS
        rounded = tuple(_round_up(max(1, int(side * scale)), multiple) for side in (height, width))
        if math.prod(rounded) <= area:
            return rounded[0], rounded[1]
    return _rounded_down(height, width, area, multiple)


def _scales(height: int, width: int, area: int, multiple: int) -> tuple[float, float]:
    """The largest and the smallest scale to try.

    The largest fills the area without any rounding. The smallest allows for the most rounding; it is the root that Wan
    takes of `(height * s + slack) * (width * s + slack) = area`, with twice instead of four times the product below the
    square root, which is what its sizes come from.
    """
    pixels = height * width
    if pixels <= area:
        return 1.0, _LEAST_SCALE
    slack = multiple - 1
    linear, constant = slack * (height + width), slack**2 - area
    smallest = (math.sqrt(linear**2 - 2 * pixels * constant) - linear) / (2 * pixels)
    return math.sqrt(area / pixels), smallest


def _rounded_down(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    aspect = width / height
    sides = math.sqrt(area / aspect), math.sqrt(area * aspect)
    rows, columns = (int(side // multiple * multiple) for side in sides)
    if rows >= height or columns >= width:
        rows, columns = (side // multiple * multiple for side in (height, width))
    return max(rows, multiple), max(columns, multiple)


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple

"""A plain pixel test: does a picture show the shape, the colour and the background that its prompt asks for?"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.shapes import BACKGROUNDS, COLOURS, Colour

PROMPT = re.compile(r"an? (\w+) (\w+) on an? (\w+) background")
CONTRAST = 60.0  # RGB distance from the background at which a pixel belongs to the shape
LIKENESS = 0.75  # intersection over union with the ideal shape; the next best ideal has about 0.6

Mask = NDArray[np.bool_]
Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """What a picture shows: the names of its shape, its colour and its background."""

    shape: str
    colour: str
    background: str


def wanted(prompt: str) -> Finding:
    """What a prompt such as "a red ring on a white background" asks for; ValueError for another kind of prompt."""
    match = PROMPT.fullmatch(prompt.strip().lower())
    if match is None:
        raise ValueError(f"cannot read {prompt!r}; expected 'a COLOUR SHAPE on a BACKGROUND background'")
    colour, shape, background = match.groups()
    return Finding(shape, colour, background)


def nearest(colour: Pixels, names: dict[str, Colour]) -> str:
    """The name whose colour has the smallest RGB distance."""
    return min(names, key=lambda name: float(np.linalg.norm(colour - np.array(names[name]))))


def border(pixels: Pixels) -> Pixels:
    """The outermost two pixels on every side, [N, 3]."""
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[2:-2, 2:-2] = True
    return pixels[~inside]


def crop(mask: Mask) -> Mask:
    """The mask's bounding box, ignoring rows and columns with fewer than two pixels."""
    rows, columns = np.flatnonzero(mask.sum(axis=1) >= 2), np.flatnonzero(mask.sum(axis=0) >= 2)
    if not len(rows) or not len(columns):
        return mask[:0, :0]
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def resemblance(mask: Mask) -> dict[str, float]:
    """For each shape, how well it fits the mask's bounding box: intersection over union, 0 to 1."""
    height, width = mask.shape
    y, x = np.mgrid[0:height, 0:width].astype(float)
    y, x = (2 * y + 1) / height - 1, (2 * x + 1) / width - 1
    disc = x**2 + y**2 <= 1
    templates = {
        "circle": disc,
        "square": np.ones_like(mask),
        "triangle": np.abs(x) <= (y + 1) / 2,
        "ring": disc & (x**2 + y**2 >= 0.25),
    }
    return {name: float((mask & shape).sum() / (mask | shape).sum()) for name, shape in templates.items()}


def centre_fill(mask: Mask) -> float:
    """How much of the middle of the mask's bounding box, 30 % of its width and height, is filled, 0 to 1."""
    height, width = mask.shape
    top, left = round(0.35 * height), round(0.35 * width)
    return float(mask[top : height - top, left : width - left].mean())


def recognise(image: Image.Image) -> Finding | None:
    """What the picture shows, or None unless it is one clean shape on one plain background."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    frame = border(pixels)
    background = np.median(frame, axis=0)
    if np.mean(np.linalg.norm(frame - background, axis=1) < CONTRAST) < 0.9:
        return None
    mask: Mask = np.linalg.norm(pixels - background, axis=2) > CONTRAST
    box = crop(mask)
    height, width = box.shape
    if min(height, width) < 0.2 * pixels.shape[0] or max(height, width) > 1.4 * min(height, width):
        return None
    filled = centre_fill(box)
    if 0.3 < filled < 0.9:
        return None
    fits = {name: fit for name, fit in resemblance(box).items() if (name == "ring") == (filled <= 0.3)}
    shape = max(fits, key=lambda name: fits[name])
    if fits[shape] < LIKENESS:
        return None
    return Finding(shape, nearest(np.median(pixels[mask], axis=0), COLOURS), nearest(background, BACKGROUNDS))


def shows(image: Image.Image, prompt: str) -> bool:
    """Whether the picture shows exactly what the prompt asks for."""
    return recognise(image) == wanted(prompt)

"""The quickstart's pictures: one coloured shape on a plain background, captioned, the same for the same seed."""

import argparse
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (245, 215, 40),
    "green": (40, 160, 60),
    "blue": (40, 90, 220),
    "purple": (130, 50, 180),
    "pink": (240, 90, 170),
    "cyan": (30, 190, 200),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "gray": (150, 150, 155),
    "navy": (20, 30, 90),
    "beige": (225, 205, 165),
    "mint": (190, 235, 210),
}
KNOWN_SHAPES = ("circle", "square", "triangle")
NEW_SHAPE = "ring"
SIZE = 64
HOLE = 0.5  # radius of a ring's hole, as a fraction of the ring's
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """One picture in words and numbers; `radius` and the centre are fractions of the picture's side."""

    shape: str
    colour: str
    background: str
    centre: tuple[float, float] = (0.5, 0.5)
    radius: float = 0.3

    @property
    def caption(self) -> str:
        """The caption a model is trained on and prompted with."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape} on a {self.background} background"


def outline(scene: Scene, side: float) -> list[tuple[float, float]]:
    """Corners of the scene's square or triangle in a picture `side` pixels wide."""
    x, y = scene.centre[0] * side, scene.centre[1] * side
    radius = scene.radius * side
    if scene.shape == "square":
        half = 0.9 * radius
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if scene.shape == "triangle":
        return [(x, y - radius), (x + 1.1 * radius, y + 0.9 * radius), (x - 1.1 * radius, y + 0.9 * radius)]
    raise ValueError(f"no such shape: {scene.shape!r}; there are {', '.join((*KNOWN_SHAPES, NEW_SHAPE))}")


def disc(scene: Scene, side: float, scale: float = 1.0) -> tuple[float, float, float, float]:
    """Bounding box of the scene's circle in a picture `side` pixels wide, its radius multiplied by `scale`."""
    x, y = scene.centre[0] * side, scene.centre[1] * side
    radius = scene.radius * side * scale
    return (x - radius, y - radius, x + radius, y + radius)


def draw(scene: Scene, size: int = SIZE) -> Image.Image:
    """The scene as an antialiased RGB picture of `size` by `size` pixels."""
    side = size * SUPERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    colour = COLOURS[scene.colour]
    if scene.shape in ("circle", NEW_SHAPE):
        pen.ellipse(disc(scene, side), fill=colour)
        if scene.shape == NEW_SHAPE:
            pen.ellipse(disc(scene, side, HOLE), fill=BACKGROUNDS[scene.background])
    else:
        pen.polygon(outline(scene, side), fill=colour)
    return image.resize((size, size), Image.Resampling.BOX)


def placed(shape: str, colour: str, background: str, source: random.Random) -> Scene:
    """A scene of that content whose size and position come from `source` and which lies inside the picture."""
    radius = source.uniform(0.28, 0.36) if shape == NEW_SHAPE else source.uniform(0.22, 0.34)
    margin = 1.1 * radius + 0.03
    centre = (source.uniform(margin, 1 - margin), source.uniform(margin, 1 - margin))
    return Scene(shape, colour, background, centre, radius)


def known_scenes(count: int, seed: int) -> Iterator[Scene]:
    """`count` random scenes of the known shapes; the first n are the same whatever the count."""
    for index in range(count):
        source = random.Random(f"{seed}/{index}")
        yield placed(source.choice(KNOWN_SHAPES), source.choice(list(COLOURS)), source.choice(list(BACKGROUNDS)), source)


def new_pairs() -> list[tuple[str, str]]:
    """Colour and background of the new shape's training pictures: one half of all pairs, laid out like a chessboard."""
    cells = itertools.product(enumerate(COLOURS), enumerate(BACKGROUNDS))
    return [(colour, background) for (row, colour), (column, background) in cells if (row + column) % 2 == 0]


def new_scenes(seed: int) -> Iterator[Scene]:
    """One scene of the new shape for every training pair."""
    for index, (colour, background) in enumerate(new_pairs()):
        yield placed(NEW_SHAPE, colour, background, random.Random(f"{seed}/{index}"))


def kept_scenes(seed: int) -> Iterator[Scene]:
    """One scene of a known shape for every training pair: shown beside the new shape, they keep it apart from these."""
    for index, (colour, background) in enumerate(new_pairs()):
        shape = KNOWN_SHAPES[(index + index // len(KNOWN_SHAPES)) % len(KNOWN_SHAPES)]
        yield placed(shape, colour, background, random.Random(f"{seed}/{index}"))


def write(scenes: Iterable[Scene], folder: Path) -> int:
    """Write each scene as NAME.png with its caption in NAME.txt and return how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, scene in enumerate(scenes, start=1):
        name = f"{count:05d}-{scene.colour}-{scene.shape}-{scene.background}"
        draw(scene).save(folder / f"{name}.png", optimize=True)
        (folder / f"{name}.txt").write_text(scene.caption + "\n", encoding="utf-8")
    return count


def main() -> None:
    """Command line: draw known shapes for pretraining, or with --new or --kept the pictures to fine-tune on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=4096, help="how many pictures to pretrain on")
    parser.add_argument("--seed", type=int, default=0)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--new", action="store_true", help=f"draw the {len(new_pairs())} pictures of the new shape")
    choice.add_argument("--kept", action="store_true", help=f"draw {len(new_pairs())} pictures of the known shapes")
    arguments = parser.parse_args()
    if arguments.new:
        scenes = new_scenes(arguments.seed)
    elif arguments.kept:
        scenes = kept_scenes(arguments.seed)
    else:
        scenes = known_scenes(arguments.count, arguments.seed)
    print(f"{write(scenes, arguments.folder)} pictures in {arguments.folder}")


if __name__ == "__main__":
    main()

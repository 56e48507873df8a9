"""Compose before-after.png from a run's validation pictures and count what a plain pixel test recognises in them."""

import argparse
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pretrain.shapes import KNOWN_SHAPES
from recogniser import shows, wanted

SHEET_WIDTH = 1600
LABEL_WIDTH = 100
GAP = 8
TEXT_SIZE = 20
INK, PAPER, YES, NO = (30, 30, 35), (255, 255, 255), (40, 170, 80), (215, 60, 50)


@dataclass(frozen=True)
class Pair:
    """The pictures of one prompt and seed before and after training."""

    prompt: str
    before: Image.Image
    after: Image.Image

    @property
    def is_new(self) -> bool:
        """Whether the prompt asks for a shape that pretraining did not know."""
        return wanted(self.prompt).shape not in KNOWN_SHAPES


def read_pairs(run: Path) -> list[Pair]:
    """The run's baseline beside its newest validation, by prompt; SystemExit if one of them is missing."""
    steps = sorted(folder for folder in run.glob("validation/step-*") if any(folder.glob("*.png")))
    if len(steps) < 2 or steps[0].name != "step-000000":
        found = ", ".join(folder.name for folder in steps) or "nothing"
        raise SystemExit(f"{run / 'validation'}: a baseline (step-000000) and a later step are needed; found {found}")
    pairs = []
    for path in sorted(steps[0].glob("*.png")):
        with Image.open(path) as before, Image.open(steps[-1] / path.name) as after:
            prompt = json.loads(before.info["tunesmith"])["prompt"]
            pairs.append(Pair(prompt, before.convert("RGB"), after.convert("RGB")))
    return sorted(pairs, key=lambda pair: pair.prompt)


def tally(pairs: list[Pair]) -> str:
    """How many of the pictures show what was asked for, before and after."""
    before = sum(shows(pair.before, pair.prompt) for pair in pairs)
    after = sum(shows(pair.after, pair.prompt) for pair in pairs)
    return f"{before} of {len(pairs)} before, {after} of {len(pairs)} after"


def tile(image: Image.Image, prompt: str, side: int) -> Image.Image:
    """The picture enlarged and framed in green if it shows what was asked for, in red if not."""
    framed = Image.new("RGB", (side, side), YES if shows(image, prompt) else NO)
    framed.paste(image.resize((side - 6, side - 6), Image.Resampling.LANCZOS), (3, 3))
    return framed


def panel(title: str, pairs: list[Pair]) -> Image.Image:
    """One labelled group: a column for every pair, before above after, the prompt below."""
    side = min(3 * 64, (SHEET_WIDTH - LABEL_WIDTH) // len(pairs) - GAP)
    step = side + GAP
    large, small = ImageFont.load_default(TEXT_SIZE), ImageFont.load_default(max(11, side // 9))
    lines = [textwrap.fill(pair.prompt, 18) for pair in pairs]
    top = 2 * TEXT_SIZE
    caption = (max(text.count("\n") for text in lines) + 1) * side // 6 + GAP
    sheet = Image.new("RGB", (SHEET_WIDTH, top + 2 * step + caption), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, TEXT_SIZE // 2), title, INK, large)
    for row, label in enumerate(("before", "after")):
        pen.text((GAP, top + row * step + side // 2), label, INK, large, anchor="lm")
    for column, (pair, text) in enumerate(zip(pairs, lines, strict=True)):
        left = LABEL_WIDTH + column * step
        sheet.paste(tile(pair.before, pair.prompt, side), (left, top))
        sheet.paste(tile(pair.after, pair.prompt, side), (left, top + step))
        pen.multiline_text((left + side // 2, top + 2 * step), text, INK, small, anchor="ma", align="center")
    return sheet


def compose(panels: list[Image.Image]) -> Image.Image:
    """The panels below each other, with the meaning of the frames at the end."""
    sheet = Image.new("RGB", (SHEET_WIDTH, sum(part.height for part in panels) + 2 * TEXT_SIZE), PAPER)
    top = 0
    for part in panels:
        sheet.paste(part, (0, top))
        top += part.height
    note = "Green frame: the pixel test finds the shape, the colour and the background that the prompt asks for."
    ImageDraw.Draw(sheet).text((GAP, top + TEXT_SIZE // 2), note, INK, ImageFont.load_default(TEXT_SIZE - 4))
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Command line: write RUN/before-after.png, print its path and the count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    run: Path = parser.parse_args(arguments).run
    pairs = read_pairs(run)
    new, kept = [pair for pair in pairs if pair.is_new], [pair for pair in pairs if not pair.is_new]
    groups = {"New: the ring, in colours and on backgrounds not among its 24 pictures": new, "Kept: what it knew": kept}
    path = run / "before-after.png"
    compose([panel(title, group) for title, group in groups.items() if group]).save(path, optimize=True)
    print(path)
    print(f"rings recognised: {tally(new)}; kept shapes recognised: {tally(kept)}")


if __name__ == "__main__":
    main()

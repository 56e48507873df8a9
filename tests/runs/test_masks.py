"""Masks arrive in the batch as their samples' own crops, from the cache and without one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tunesmith.hooks import HookCaller

from .watching import Watched, watched

__all__ = ["watched"]

SIDEWAYS = 6  # turned by 90 degrees by its EXIF data


def grey(number: int, size: tuple[int, int]) -> Image.Image:
    """A picture in which no two places are alike."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(((rows * 3 + columns * 2 + 40 * number) % 256).astype(np.uint8))


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Four larger pictures, one of them lying on its side, and masks of the first three that show the very same."""
    (tmp_path / "shapes").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(4):
        picture = grey(number, (96, 80))
        (tmp_path / f"shapes/{number}.txt").write_text("a shape")
        if number == 1:
            exif = Image.Exif()
            exif[0x0112] = SIDEWAYS
            picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "shapes/1.png", exif=exif)
        else:
            picture.save(tmp_path / f"shapes/{number}.png")
        if number < 3:
            picture.save(tmp_path / f"masks/{number}.png")
    return tmp_path / "shapes"


def masks_table(shapes: Path) -> str:
    return f"[[datasets]]\nkind = 'mask'\nof = 'shapes'\npath = {str(shapes.with_name('masks'))!r}\nmissing = 'full'\n"


def cut(one: Watched, row: int) -> torch.Tensor:
    """What Pillow makes of a sample's own picture by its crop, [H, W]; ones where it has no mask."""
    source = one.step.batch.sources[row]
    width, height = source.crop.size
    if source.file.stem == "3":
        return torch.full((height, width), 255, dtype=torch.uint8)
    left, top = source.crop.offset
    with Image.open(source.file) as file:
        upright = ImageOps.exif_transpose(file).convert("L").resize(source.crop.resize, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(upright.crop((left, top, left + width, top + height))))


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_mask_is_cut_as_its_picture(train, shapes, watched, cache):
    train("masked", masks_table(shapes), *settings(shapes), f"run.cache={cache}")
    assert len(watched) == 8
    seen = set()
    for one in watched:
        mask = one.field("mask")
        assert mask.dtype == torch.uint8
        assert mask.shape == (2, 1, 64, 64)
        for row, source in enumerate(one.step.batch.sources):
            seen.add((source.file.stem, source.crop.offset))
            assert int((mask[row, 0].int() - cut(one, row).int()).abs().max()) <= 1
    assert {stem for stem, _ in seen} == {"0", "1", "2", "3"}
    assert len(seen) > 4  # several crops of a picture


def test_masks_that_come_later_are_cached_without_encoding_pictures_again(train, shapes, monkeypatch, watched):
    train("before", "", *settings(shapes))
    asked = []
    encode = HookCaller.encode_batch

    def watch(self, run, batch):
        asked.append((batch.wanted, sorted(batch.inputs)))
        return encode(self, run, batch)

    monkeypatch.setattr(HookCaller, "encode_batch", watch)
    watched.clear()
    train("after", masks_table(shapes), *settings(shapes))
    assert asked
    assert all(call == (frozenset({"mask"}), ["mask"]) for call in asked)
    assert all("mask" in one.step.batch.fields for one in watched)


def test_a_batch_without_masks_beside_one_with_masks_counts_in_full(train, shapes, pictures, watched):
    plain = f"[[datasets]]\nname = 'plain'\npath = {str(pictures)!r}\nresolution = 64\ncrop_aspect = 'square'\n"
    train("beside", masks_table(shapes) + plain, *settings(shapes))
    plain_masks = [one.field("mask") for one in watched if one.dataset == "plain"]
    assert plain_masks
    assert all(bool((mask == 255).all()) for mask in plain_masks)


def test_without_masks_there_is_no_such_field(train, watched):
    train("plain", "", "run.steps=1", "validation.at_start=false", "validation.at_end=false")
    assert "mask" not in watched[0].step.batch.fields


def settings(shapes: Path) -> tuple[str, ...]:
    return (
        "run.steps=8",
        "validation.at_start=false",
        "validation.at_end=false",
        f"datasets.0.path={str(shapes)!r}",
        "datasets.0.name='shapes'",
        "datasets.0.crop_aspect='square'",
        "datasets.0.variants=3",
    )

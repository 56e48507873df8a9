"""Pictures and masks as kinds of datasets: which are left out, what is cut out, and that a mask goes with its sample."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from core.tests.data.support import Facts, table
from tunesmith import Caption, Crop, Source, Unfit, Unreadable, Window
from tunesmith.config.datasets import MaskTable
from tunesmith.data.images import load_mask
from tunesmith.data.pictures import ImageKind, MaskKind
from tunesmith.kinds import Piece, Probe
from tunesmith.randomness import numpy_generator


def kind(**settings):
    return ImageKind(table(Path("pictures"), **settings), Facts())


def masks():
    return MaskKind(MaskTable(kind="mask", path="masks", of="pictures"), Facts())


def mask_of(file: Path, crop: Crop) -> torch.Tensor:
    mask: torch.Tensor = masks().companion(Source("set", file, Caption(""), crop), file, kind())
    return mask


def grey(values: np.ndarray, file: Path, **saved) -> Path:
    Image.fromarray(values.astype(np.uint8)).save(file, **saved)
    return file


@pytest.mark.parametrize(
    ("settings", "fits", "size", "station", "reason"),
    [
        ({"max_pixels": 10_000}, (100, 100), (101, 100), "readable", "more pixels than max_pixels = 10000"),
        ({"resolution_type": "pixel", "minimum_size": 64}, (900, 64), (900, 63), "sized", "smaller than minimum_size = 64"),
        ({"resolution_type": "pixel_area", "minimum_size": 64}, (128, 32), (128, 31), "sized", "smaller than minimum_size = 64"),
        ({"resolution_type": "area", "minimum_size": 0.5}, (1000, 500), (1000, 499), "sized", "smaller than minimum_size = 0.5"),
        ({"minimum_aspect": 0.5}, (50, 100), (49, 100), "bucketed", "narrower than minimum_aspect = 0.5"),
        ({"maximum_aspect": 1.5}, (150, 100), (151, 100), "bucketed", "wider than maximum_aspect = 1.5"),
        ({}, (300, 20), (5000, 1), "sized", "too elongated: less than 1/16 would be left"),
    ],
)
def test_what_the_settings_leave_out_is_counted_by_reason_with_its_size_as_the_detail(settings, fits, size, station, reason):
    one = kind(**settings)
    assert len(one.pieces(Probe(*fits), "a.png")) == 1
    with pytest.raises(Unfit) as raised:
        one.pieces(Probe(*size), "a.png")
    assert (raised.value.station, raised.value.reason, raised.value.detail) == (station, reason, f"{size[0]}x{size[1]}")


def test_a_picture_over_the_limit_of_its_dataset_is_not_decoded(tmp_path):
    grey(np.zeros((40, 50)), tmp_path / "a.png")
    source = Source("set", tmp_path / "a.png", Caption(""), Crop((50, 40), (32, 32), (0, 0)))
    assert kind(max_pixels=2000).load(source, "pixels").shape == (3, 32, 32)
    with pytest.raises(Unreadable, match="50x40 are more pixels than max_pixels = 1999"):
        kind(max_pixels=1999).load(source, "pixels")
    with pytest.raises(Unreadable, match="50x40 are more pixels than max_pixels = 1999"):
        masks().companion(source, tmp_path / "a.png", kind(max_pixels=1999))


def test_the_crop_is_the_middle_the_corner_or_drawn():
    [piece] = kind(crop_aspect="square").pieces(Probe(100, 50), "a.png")
    assert (piece.target.resize, piece.target.size) == ((64, 32), (32, 32))
    offsets = {}
    for crop in ("center", "corner", "random"):
        one = kind(crop=crop, crop_aspect="square")
        assert one.draws == (crop == "random")
        parts = [one.part(piece, numpy_generator(0, "crop", number)) for number in range(300)]
        assert {window for _, window in parts} == {None}
        offsets[crop] = {part.offset for part, _ in parts}
    assert offsets == {"center": {(16, 0)}, "corner": {(0, 0)}, "random": {(left, 0) for left in range(33)}}


def test_crop_aspects_and_downsampling_decide_the_piece():
    closest = kind(resolution=64, resolution_type="pixel", crop_aspect="closest", crop_aspects=(0.5, 1.0, 2.0))
    assert closest.pieces(Probe(300, 160), "a.png")[0].target.size == (128, 64)
    drawn = kind(resolution=64, resolution_type="pixel", crop_aspect="random", crop_aspects=(0.5, 2.0))
    sizes = {name: drawn.pieces(Probe(300, 300), name)[0].target.size for name in map(str, range(20))}
    assert set(sizes.values()) == {(64, 128), (128, 64)}
    assert sizes == {name: drawn.pieces(Probe(700, 900), name)[0].target.size for name in sizes}
    larger = kind(resolution=64, resolution_type="pixel", maximum_size=500, downsample_to=100)
    assert larger.pieces(Probe(2000, 1000), "a.png")[0].target.resize == (200, 100)


def test_a_mask_has_the_resize_and_crop_of_its_sample_whatever_its_own_size(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (60, 90))
    grey(values, tmp_path / "small.png")
    grey(values.repeat(4, 0).repeat(4, 1), tmp_path / "large.png")
    crop = Crop((45, 30), (32, 16), (9, 12))
    expected = np.asarray(Image.fromarray(values.astype(np.uint8)).resize((45, 30), Image.Resampling.LANCZOS))[12:28, 9:41]
    small, large = mask_of(tmp_path / "small.png", crop), mask_of(tmp_path / "large.png", crop)
    assert (small.shape, small.dtype) == ((1, 16, 32), torch.float32)
    np.testing.assert_allclose(small[0].numpy() * 255, expected, atol=1e-4)
    assert (large - small).abs().max() < 0.1


def test_masks_follow_the_crops_that_are_drawn_for_their_samples(tmp_path):
    left = np.tile(np.arange(96), (32, 1))
    picture = grey(np.stack([left] * 3, -1), tmp_path / "picture.png")
    mask = grey(left, tmp_path / "mask.png")
    one = kind(crop="random", crop_aspect="square")
    [piece] = one.pieces(one.probe(picture), "picture.png")
    offsets = set()
    for number in range(40):
        crop, _ = one.part(piece, numpy_generator(1, "crop", number))
        offsets.add(crop.offset)
        pixels = one.load(Source("set", picture, Caption(""), crop), "pixels")
        torch.testing.assert_close(mask_of(mask, crop), (pixels[:1] + 1) / 2, atol=1e-5, rtol=0)
    assert len(offsets) > 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_a_turned_picture_is_as_upright_as_the_picture(tmp_path, orientation):
    values = np.random.default_rng(1).integers(0, 256, (32, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = grey(np.stack([values] * 3, -1), tmp_path / "a.png", exif=exif)
    one = kind(crop="corner")
    [piece] = one.pieces(one.probe(picture), "a.png")
    crop, _ = one.part(piece, None)
    pixels = one.load(Source("set", picture, Caption(""), crop), "pixels")
    drawn = grey(np.asarray(ImageOps.exif_transpose(Image.open(picture)))[..., 0], tmp_path / "drawn.png")  # over what a viewer shows
    turned = grey(values, tmp_path / "turned.png", exif=exif)  # made of the file, with its EXIF data
    for mask in (drawn, turned):
        torch.testing.assert_close(mask_of(mask, crop), (pixels[:1] + 1) / 2, atol=1e-5, rtol=0)


def test_soft_masks_keep_their_greys_and_colours_count_by_their_mean(tmp_path):
    crop = Crop((4, 1), (4, 1), (0, 0))
    soft = grey(np.array([[0, 64, 128, 255]]), tmp_path / "soft.png")
    assert load_mask(soft, crop).tolist() == [[[0.0, pytest.approx(64 / 255), pytest.approx(128 / 255), 1.0]]]
    Image.fromarray(np.array([[(255, 0, 0), (0, 255, 255), (9, 9, 9), (255, 255, 255)]], np.uint8)).save(tmp_path / "colours.png")
    assert load_mask(tmp_path / "colours.png", crop)[0, 0].tolist() == pytest.approx([1 / 3, 2 / 3, 9 / 255, 1])
    wide = np.array([[0, 51 * 257, 65535, 204 * 257]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert load_mask(tmp_path / "wide.png", crop)[0, 0].tolist() == pytest.approx([0, 0.2, 1, 0.8])


def test_one_bit_and_palette_masks_are_zero_and_one(tmp_path):
    crop = Crop((4, 1), (4, 1), (0, 0))
    bits = Image.new("1", (4, 1))
    bits.putdata([0, 255, 255, 0])
    bits.save(tmp_path / "bits.png")
    palette = Image.new("P", (4, 1))
    palette.putpalette([255, 255, 255, 0, 0, 0])
    palette.putdata([1, 0, 0, 1])
    palette.save(tmp_path / "palette.png")
    for name in ("bits.png", "palette.png"):
        assert load_mask(tmp_path / name, crop).tolist() == [[[0.0, 1.0, 1.0, 0.0]]]


def test_what_is_transparent_in_a_mask_does_not_count(tmp_path):
    crop = Crop((3, 1), (3, 1), (0, 0))
    Image.fromarray(np.array([[(255, 255, 255, 255), (255, 255, 255, 0), (255, 255, 255, 51)]], np.uint8)).save(tmp_path / "alpha.png")
    assert load_mask(tmp_path / "alpha.png", crop)[0, 0].tolist() == pytest.approx([1, 0, 0.2])
    keyed = Image.new("L", (3, 1))
    keyed.putdata([255, 200, 255])
    keyed.save(tmp_path / "keyed.png", transparency=200)
    assert load_mask(tmp_path / "keyed.png", crop)[0, 0].tolist() == [1, 0, 1]


def test_a_sample_without_a_mask_counts_in_full(tmp_path):
    crop = Crop((40, 30), (32, 16), (0, 0))
    picture, clip = (Source("set", tmp_path / "a", Caption(""), crop, window) for window in (None, Window(0, 5, 16)))
    for source, shape in ((picture, (1, 16, 32)), (clip, (1, 5, 16, 32))):
        full = masks().companion(source, None, kind())
        assert full.shape == shape
        assert full.min() == full.max() == 1


def test_a_picture_as_the_mask_of_a_clip_holds_for_all_its_frames(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (16, 32))
    crop = Crop((32, 16), (16, 16), (8, 0))
    source = Source("set", tmp_path / "a.mp4", Caption(""), crop, Window(0, 5, 16))
    mask = masks().companion(source, grey(values, tmp_path / "a.png"), kind())
    assert mask.shape == (1, 5, 16, 16)
    for frame in range(5):
        np.testing.assert_allclose(mask[0, frame].numpy() * 255, values[:, 8:24], atol=1e-4)


def test_a_mask_is_no_sample_of_its_own():
    with pytest.raises(Unfit, match="belongs to a sample of another dataset"):
        masks().pieces(Probe(32, 32), "a.png")
    with pytest.raises(NotImplementedError):
        masks().part(Piece(kind().target(Probe(32, 32), "a.png")), None)

"""Sizes, resizes and crops against recorded ones, and where the record is left on purpose."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.tests.data.support import Facts, table
from tunesmith.data.geometry import (
    Rule,
    Target,
    bucket_frames,
    center_crop,
    chosen_aspect,
    corner_crop,
    downsampled,
    measured,
    random_crop,
    rule_of,
    target_size,
    too_elongated,
)
from tunesmith.randomness import numpy_generator

GOLDEN = json.loads((Path(__file__).parent / "golden" / "aspect_buckets.json").read_text())
PRESERVE = [one for one in GOLDEN["settings"] if one["crop_aspect"] == "preserve"]
[CLOSEST] = [one for one in GOLDEN["settings"] if one["crop_aspect"] == "closest"]
[SQUARE] = [one for one in GOLDEN["settings"] if one["crop_aspect"] == "square"]


def rule(setting):
    return Rule(
        setting["resolution_type"],
        setting["resolution"],
        setting["aspect_bucket_alignment"],
        setting["aspect_bucket_rounding"],
        square=setting["crop_aspect"] == "square",
    )


def name_of(setting):
    keys = ("resolution_type", "resolution", "aspect_bucket_alignment", "aspect_bucket_rounding", "crop_style")
    return "-".join(str(setting[key]) for key in keys)


def defects_of(setting):
    return {row for rows in setting["defect_rows"].values() for row in rows}


@pytest.mark.parametrize("setting", PRESERVE, ids=name_of)
def test_sizes_resizes_crops_and_ratios_are_the_recorded_ones(setting):
    crop = {"center": center_crop, "corner": corner_crop}[setting["crop_style"]]
    defects = defects_of(setting)
    wrong = {}
    for row, (size, expected) in enumerate(zip(GOLDEN["sizes"], setting["rows"], strict=True)):
        target = target_size(tuple(size), rule(setting))
        left, top = crop(target).offset
        found = [list(target.size), list(target.resize), [top, left], target.ratio]
        if row not in defects and found != expected:
            wrong[row] = (size, found, expected)
    assert not wrong
    assert len(defects) < len(GOLDEN["sizes"]) / 2


@pytest.mark.parametrize("setting", GOLDEN["settings"], ids=lambda one: f"{name_of(one)}-{one['crop_aspect']}")
def test_every_target_is_aligned_and_covered_where_the_record_has_defects_too(setting):
    alignment = setting["aspect_bucket_alignment"]
    for size in GOLDEN["sizes"]:
        target = target_size(tuple(size), rule(setting))
        assert target.size[0] % alignment == target.size[1] % alignment == 0
        assert target.resize[0] >= target.size[0] > 0
        assert target.resize[1] >= target.size[1] > 0


def test_square_crops_have_the_recorded_size_but_keep_the_pictures_aspect():
    for size, expected in zip(GOLDEN["sizes"], SQUARE["rows"], strict=True):
        target = target_size(tuple(size), rule(SQUARE))
        assert [list(target.size), target.ratio] == [expected[0], expected[3]]
        longer, shorter = max(target.resize), min(target.resize)
        assert shorter == target.size[0]
        assert longer == target.size[0] * max(size) // min(size)


def test_the_closest_aspects_are_the_recorded_ones_but_portraits_are_not_squeezed_into_squares(tmp_path):
    crops = table(tmp_path, crop_aspect="closest", crop_aspects=tuple(CLOSEST["crop_aspect_buckets"]))
    squeezed = 0
    for row, (size, expected) in enumerate(zip(GOLDEN["sizes"], CLOSEST["rows"], strict=True)):
        target = target_size(tuple(size), rule(CLOSEST), chosen_aspect(tuple(size), crops, "any.png"))
        left, top = center_crop(target).offset
        if row in defects_of(CLOSEST):
            continue
        assert [list(target.size), target.ratio] == [expected[0], expected[3]]
        if expected[1] == [768, 768] and max(size) >= 1.1 * min(size):  # the record resizes the whole picture to a square
            squeezed += 1
            assert target.resize == (768, 768 * size[1] // size[0])
        else:
            assert [list(target.resize), [top, left]] == expected[1:3]
    assert 0 < squeezed < 12


def test_the_closest_aspect_is_nearest_by_ratio(tmp_path):
    crops = table(tmp_path, crop_aspect="closest", crop_aspects=(0.5, 1.0, 2.0))
    assert [chosen_aspect(size, crops, "") for size in ((100, 142), (100, 141), (141, 100), (142, 100))] == [0.5, 1.0, 1.0, 2.0]
    assert chosen_aspect((100, 100), table(tmp_path), "") is None


def test_a_drawn_aspect_belongs_to_the_name_and_comes_as_often_as_the_others(tmp_path):
    crops = table(tmp_path, crop_aspect="random", crop_aspects=(0.5, 1.0, 1.78))
    drawn = {f"{number}.png": chosen_aspect((100, 100), crops, f"{number}.png") for number in range(900)}
    assert drawn == {name: chosen_aspect((9, 2000), crops, name) for name in drawn}
    counts = Counter(drawn.values())
    assert set(counts) == {0.5, 1.0, 1.78}
    assert min(counts.values()) > 250  # 300 +- 14


@pytest.mark.parametrize(
    ("kind", "resolution", "aspect", "size"),
    [
        ("pixel", 256, 2.0, (512, 256)),
        ("pixel", 256, 0.5, (256, 512)),
        ("area", 0.5, 0.5, (512, 992)),
        ("pixel_area", 256, 1.0, (256, 256)),
    ],
)
def test_a_chosen_aspect_decides_the_size_whatever_the_picture(kind, resolution, aspect, size):
    one = Rule(kind, resolution, 32, 2, square=False)
    for picture in ((1000, 500), (500, 1000), (3000, 2900)):
        target = target_size(picture, one, aspect)
        assert target.size == size
        assert abs(target.size[0] / target.size[1] / aspect - 1) < 0.1
        scale = [outer / inner for outer, inner in zip(target.resize, picture, strict=True)]
        assert abs(scale[0] / scale[1] - 1) < 0.04
        assert all(outer >= inner for outer, inner in zip(target.resize, target.size, strict=True))


@pytest.mark.parametrize("one", GOLDEN["video_buckets"], ids=lambda one: f"{one['key']}-{one['frame_interval']}")
def test_buckets_of_clips_have_the_recorded_frames(one):
    assert bucket_frames(one["num_frames"], one["frame_interval"]) == one["bucket_frames"]


def test_sizes_are_measured_in_the_unit_of_the_resolution():
    assert measured((1000, 640), "pixel") == 640
    assert measured((1000, 640), "area") == 0.64
    assert measured((1000, 640), "pixel_area") == pytest.approx(800)


@pytest.mark.parametrize(
    ("settings", "resize"),
    [
        ({"resolution_type": "pixel", "resolution": 128, "maximum_size": 1000, "downsample_to": 500}, (1000, 500)),
        ({"resolution_type": "pixel_area", "resolution": 128, "maximum_size": 1000, "downsample_to": 500}, (707, 354)),
        ({"resolution_type": "area", "resolution": 0.02, "maximum_size": 1.0, "downsample_to": 0.5}, (1000, 500)),
    ],
    ids=["pixel", "pixel_area", "area"],
)
def test_pictures_over_the_maximum_are_cropped_out_of_a_larger_size(tmp_path, settings, resize):
    of = table(tmp_path, **settings)
    small, large = (target_size(size, rule_of(of, Facts())) for size in ((1400, 700), (4000, 2000)))
    assert small == large
    assert downsampled(large, (4000, 2000), of) == Target(large.size, resize, large.ratio)
    assert downsampled(small, (1400, 700), of) == small


def test_a_downsampled_picture_still_covers_its_target(tmp_path):
    of = table(tmp_path, resolution_type="pixel", resolution=256, maximum_size=300, downsample_to=200)
    target = target_size((900, 600), rule_of(of, Facts()))
    assert downsampled(target, (900, 600), of) == target


def test_a_target_depends_on_its_size_alone_so_that_new_files_move_no_others():
    one = rule(PRESERVE[5])
    before = {tuple(size): target_size(tuple(size), one) for size in GOLDEN["sizes"]}
    after = {tuple(size): target_size(tuple(size), one) for size in reversed(GOLDEN["sizes"])}
    assert before == after


def test_pictures_of_one_rounded_aspect_share_a_bucket():
    one = Rule("pixel_area", 512, 32, 1, square=False)
    sizes = {target_size((1000 + more, 1000), one).size for more in range(460, 545, 5)}  # ratios that round to 1.5
    assert len(sizes) == 1


def test_a_coarse_rounding_does_not_squeeze_portraits_into_squares():
    target = target_size((700, 1000), Rule("area", 0.5, 64, 0, square=False))
    assert target == Target((768, 768), (768, 1097), 1.0)


def test_without_a_resolution_the_area_is_the_familys_own(tmp_path):
    family = SimpleNamespace(alignment=8, defaults=SimpleNamespace(size=(832, 480)))
    one = rule_of(table(tmp_path, resolution_type="pixel"), family)  # type: ignore[arg-type]
    assert target_size((832, 480), one).size == (832, 480)
    assert target_size((480, 832), one).size == (480, 832)
    assert rule_of(table(tmp_path, resolution=0.5, resolution_type="area"), Facts()) == Rule("area", 0.5, 16, 2, square=False)


def test_random_crops_reach_every_offset_equally_and_only_by_position():
    target = Target((4, 6), (7, 6), 0.67)
    crops = [random_crop(target, numpy_generator(3, "crop", index)) for index in range(800)]
    counts = Counter(crop.offset for crop in crops)
    assert set(counts) == {(0, 0), (1, 0), (2, 0), (3, 0)}
    assert min(counts.values()) > 150
    assert crops[5] == random_crop(target, numpy_generator(3, "crop", 5))


def test_a_line_of_pixels_is_too_elongated_and_a_panorama_is_not():
    one = Rule("pixel_area", 512, 32, 2, square=False)
    assert too_elongated(target_size((1, 40000), one))
    assert not too_elongated(target_size((4000, 500), one))

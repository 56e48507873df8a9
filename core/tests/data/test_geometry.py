"""Sizes, resizes and crops against recorded ones, and where the record is left on purpose."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.tests.data.support import Facts, table
from tunesmith.data.geometry import Rule, Target, center_crop, random_crop, rule_of, target_size, too_elongated
from tunesmith.randomness import numpy_generator

GOLDEN = json.loads((Path(__file__).parent / "golden" / "aspect_buckets.json").read_text())
PRESERVE = [one for one in GOLDEN["settings"] if one["crop_aspect"] == "preserve"]
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
    return "-".join(str(setting[key]) for key in ("resolution_type", "resolution", "aspect_bucket_alignment", "aspect_bucket_rounding"))


@pytest.mark.parametrize("setting", PRESERVE, ids=name_of)
def test_sizes_resizes_center_crops_and_ratios_are_the_recorded_ones(setting):
    defects = {row for rows in setting["defect_rows"].values() for row in rows}
    wrong = {}
    for row, (size, expected) in enumerate(zip(GOLDEN["sizes"], setting["rows"], strict=True)):
        target = target_size(tuple(size), rule(setting))
        left, top = center_crop(target).offset
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

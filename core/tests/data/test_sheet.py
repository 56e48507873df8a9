"""The contact sheet: what is on it, how large it grows, and what it does not overwrite."""

import os

import numpy as np
import pytest
from PIL import Image

from core.tests.data.clips import ClipFacts, ClipPlugin, ClipSettings, clip, clip_table
from core.tests.data.support import Facts, ordered, picture, pictures, run_table, table
from tunesmith import InputError
from tunesmith.config.datasets import MaskTable
from tunesmith.data.order import Order
from tunesmith.data.scan import Surroundings, survey_all
from tunesmith.data.sheet import GAP, MOST_ROWS, MOST_SAMPLES, PAGE, TEXT, TILE, WIDEST, check_place, draw_sheet
from tunesmith.listing.index import Index

TOP = GAP + TEXT + GAP
"""Where the pictures of the first row begin."""


def drawn(order, place):
    """The sheet's values [H, W, 3], and what is told of samples that cannot be decoded."""
    told, faults = draw_sheet(order, place)
    assert told == str(place)
    with Image.open(place) as image:
        return np.asarray(image.convert("RGB")).astype(int), faults


def together(*tables, family=None):
    """The order of datasets, of which some may belong to others."""
    around = Surroundings(family or Facts(), run_table(1), Index(None), {"clips": ClipPlugin("clips", ClipSettings())})
    datasets, wrong = survey_all([one.named() for one in tables], around)
    assert wrong == []
    return Order(list(datasets.values()), 0, cached=True)


def block(size, *columns):
    """A picture of upright stripes."""
    return Image.fromarray(np.array([columns], np.uint8)).resize(size, Image.Resampling.NEAREST)


def cell(values, left=GAP, width=TILE):
    return values[TOP : TOP + TILE, left : left + width]


def test_samples_are_shown_after_their_crop(tmp_path):
    (tmp_path / "data").mkdir()
    block((64, 32), (200, 0, 0), (0, 0, 200)).save(tmp_path / "data/a.png")
    values, faults = drawn(ordered(tmp_path / "data", 1, crop="corner", crop_aspect="square"), tmp_path / "s.png")
    assert faults == []
    assert np.abs(cell(values)[:, : TILE - 10] - [200, 0, 0]).max() < 10  # the left half of the picture is its corner square
    assert (cell(values, GAP + TILE) == 255).all()


def test_what_a_mask_leaves_out_is_red(tmp_path):
    for name in ("data", "masks"):
        (tmp_path / name).mkdir()
    block((32, 32), (100, 100, 100)).save(tmp_path / "data/a.png")
    block((32, 32), (0, 0, 0), (255, 255, 255)).save(tmp_path / "masks/a.png")
    values, _ = drawn(
        together(table(tmp_path / "data"), MaskTable(kind="mask", path=str(tmp_path / "masks"), of="data")), tmp_path / "s.png"
    )
    left, right = cell(values)[:, : TILE // 2 - 9], cell(values)[:, TILE // 2 + 9 :]
    assert np.abs(left - [0.4 * 100 + 0.6 * 255, 0.4 * 100, 0.4 * 100 + 0.6 * 80]).max() <= 1
    assert np.abs(right - 100).max() <= 1


def test_of_a_clip_the_first_the_middle_and_the_last_frame_are_shown(tmp_path):
    clip(tmp_path / "clips/a.clip", seconds=2)
    values, _ = drawn(together(clip_table(tmp_path / "clips"), family=ClipFacts()), tmp_path / "s.png")
    for number, shade in enumerate((0, 128, 255)):  # 9 frames from black to white
        assert np.abs(cell(values, GAP + number * (TILE + 1)) - shade).max() <= 1


def test_a_sample_that_cannot_be_decoded_is_crossed_out_and_told(tmp_path):
    clip(tmp_path / "clips/damaged.clip", seconds=2)
    clip(tmp_path / "clips/sound.clip", seconds=2)
    values, [fault] = drawn(together(clip_table(tmp_path / "clips"), family=ClipFacts()), tmp_path / "s.png")
    assert "damaged.clip cannot be decoded (damaged beyond frame 3)" in fault
    diagonal = np.arange(10, TILE - 10)
    assert (cell(values)[diagonal, diagonal] == 0).all()
    assert len(np.unique(cell(values).reshape(-1, 3), axis=0)) == 2  # the cross and its ground


def test_rows_and_samples_are_bounded_however_many_there_are(tmp_path):
    widths = range(32, 32 + 2 * (MOST_ROWS + 5), 2)
    for width in widths:
        clip(tmp_path / f"clips/{width}.clip", seconds=2, size=(width, 32))
    values, _ = drawn(together(clip_table(tmp_path / "clips"), family=ClipFacts()), tmp_path / "s.png")
    row = TOP + TILE + TEXT + GAP
    assert values.shape[0] == MOST_ROWS * row + 2 * GAP + TEXT + GAP  # and a line for the other 5
    pictures(tmp_path / "many", 3 * MOST_SAMPLES)
    values, _ = drawn(ordered(tmp_path / "many", 1), tmp_path / "m.png")
    assert values.shape[1] == MOST_SAMPLES * (TILE + GAP) + 2 * GAP
    for number in range(40):
        picture(tmp_path / f"wide/{number}.png", (320, 32))
    values, _ = drawn(ordered(tmp_path / "wide", 1), tmp_path / "w.png")
    assert values.shape[1] <= PAGE + 3 * GAP
    assert (values[TOP + WIDEST // 6 + 2 : TOP + TILE, :WIDEST] == 255).all()  # 96x16 keeps its aspect


def test_names_that_the_font_lacks_or_that_break_lines_are_drawn(tmp_path):
    for name in ("雪", "a\nb", "\U0001f600", "x" * 200):
        picture(tmp_path / f"data/{name}.png")
    values, _ = drawn(ordered(tmp_path / "data", 1), tmp_path / "s.png")
    assert values.shape[0] == TOP + TILE + TEXT + 2 * GAP


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("sheet.jpg", "name such as sheet.png"),
        ("folder.png", "is a folder"),
        ("nowhere/sheet.png", "there is no folder"),
        ("own.png", "not overwritten"),
        ("pipe.png", "not overwritten"),
        ("link.png", "not overwritten"),
        ("data/sheet.png", "taken for a sample"),
        ("data/below/sheet.png", "taken for a sample"),
    ],
)
def test_places_where_a_sheet_would_do_harm_are_refused(tmp_path, place, reason):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "data/below").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe.png")
    picture(tmp_path / "own.png")
    (tmp_path / "link.png").symlink_to("own.png")
    with pytest.raises(InputError, match=rf"^--sheet .*{place}: .*{reason}"):
        check_place(tmp_path / place, [tmp_path / "data", tmp_path / "gone"])


def test_a_sheet_is_drawn_anew_over_an_earlier_one(tmp_path):
    order = ordered(pictures(tmp_path / "data", 2), 1)
    place = tmp_path / "sheet.png"
    check_place(place, [tmp_path / "data"])
    draw_sheet(order, place)
    before = place.read_bytes()
    check_place(place, [tmp_path / "data"])
    draw_sheet(ordered(pictures(tmp_path / "data", 3), 1), place)
    assert place.read_bytes() != before


def test_a_sheet_that_cannot_be_written_is_one_message_and_leaves_nothing(tmp_path, monkeypatch):
    order = ordered(pictures(tmp_path / "data", 2), 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"sheet\.png: cannot be written \(No space left on device\)"):
        draw_sheet(order, tmp_path / "sheet.png")
    assert sorted(os.listdir(tmp_path)) == ["data"]

"""Reference pictures and clips that guide, as they are cut for their samples, and as validation asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.tests.data.clips import ClipFacts, ClipKind, clip, clip_table
from core.tests.data.support import Facts, table
from tunesmith import Caption, Crop, Source, Unfit, Unreadable, Wanted, Window
from tunesmith.config.datasets import ControlTable, ReferenceTable
from tunesmith.data.given import ControlKind, ReferenceKind
from tunesmith.data.pairing import Companion, notes_on
from tunesmith.data.pictures import ImageKind
from tunesmith.kinds import Probe
from tunesmith.media import read_image
from tunesmith.previews import _as_wanted

FRAME = Crop((32, 32), (32, 32), (0, 0))


def reference() -> ReferenceKind:
    return ReferenceKind(ReferenceTable(kind="reference", path="faces", of="clips"), ClipFacts())


def control() -> ControlKind:
    return ControlKind(ControlTable(kind="control", path="poses", of="clips"), ClipFacts())


def stripes(file: Path) -> Path:
    """96 x 32: red, green and blue thirds."""
    pixels = np.zeros((32, 96, 3), np.uint8)
    for channel in range(3):
        pixels[:, 32 * channel : 32 * (channel + 1), channel] = 255
    Image.fromarray(pixels).save(file)
    return file


def test_a_reference_covers_its_samples_size_and_is_cut_from_the_middle(tmp_path: Path) -> None:
    sample = Source("clips", tmp_path / "a.clip", Caption("a"), FRAME, Window(0.0, 9, 15.0))
    made = reference().companion(sample, stripes(tmp_path / "a.png"), ClipKind(clip_table(tmp_path), ClipFacts()))
    assert made.shape == (3, 32, 32)
    assert torch.equal(made, torch.tensor([-1.0, 1.0, -1.0])[:, None, None].expand(3, 32, 32))


def test_what_becomes_of_one_of_another_shape_is_told() -> None:
    told = {}
    for kind in (reference(), ControlKind(ControlTable(kind="control", path="poses", of="clips"), ClipFacts())):
        beside = Companion("beside", kind, {"a": "beside/a"}, {"a": Probe(64, 32)})
        told[beside.role] = list(notes_on(beside, ["a.mp4"], {"a.mp4": Probe(32, 32)}))[1]
    assert told == {
        "reference": "1 samples have a reference of another shape, which is cut from the middle (a.mp4: 32x32, its reference 64x32)",
        "control": "1 samples have a control of another shape, which is stretched (a.mp4: 32x32, its control 64x32)",
    }


def test_without_a_reference_the_first_frame_is_given(tmp_path: Path) -> None:
    sample = Source("clips", clip(tmp_path / "a.clip", 2), Caption("a"), FRAME, Window(0.0, 9, 15.0))
    host = ClipKind(clip_table(tmp_path), ClipFacts())
    assert torch.equal(reference().companion(sample, None, host), host.load(sample, "pixels")[:, 0])
    still = Source("pictures", stripes(tmp_path / "b.png"), Caption("b"), Crop((96, 32), (32, 32), (64, 0)))
    made = reference().companion(still, None, ImageKind(table(tmp_path), Facts()))
    assert torch.equal(made[:, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))


def test_what_is_given_is_no_sample_of_its_own() -> None:
    with pytest.raises(Unfit, match="a reference belongs to a sample of another dataset"):
        reference().pieces(Probe(32, 32), "a")
    with pytest.raises(Unfit, match="a control belongs to a sample of another dataset"):
        control().pieces(Probe(32, 32), "a")


def test_a_clip_that_guides_is_read_by_the_kind_of_the_clips_with_the_samples_part(tmp_path: Path) -> None:
    host = ClipKind(clip_table(tmp_path), ClipFacts())
    serving = control().serving(host)
    assert serving.suffixes == ClipKind.suffixes
    assert "clips-1" in serving.probing
    file = clip(tmp_path / "pose.clip", 2)
    assert serving.probe(file) == ClipKind.probe(file)
    sample = Source("clips", tmp_path / "a.clip", Caption("a"), FRAME, Window(0.0, 9, 15.0), (("control", file),))
    assert torch.equal(serving.companion(sample, file, host), host.load(sample, "pixels"))
    with pytest.raises(ValueError, match="came without its control clip"):
        serving.companion(sample, None, host)


def test_a_reference_of_validation_keeps_its_own_size_and_stands_upright(tmp_path: Path) -> None:
    wanted = Wanted(32, 32, 8.0, 16_000, 1)
    assert read_image(stripes(tmp_path / "a.png"), wanted).shape == (3, 32, 96)
    turned = Image.open(tmp_path / "a.png")
    turned.getexif()[0x0112] = 6  # to be shown a quarter further, clockwise
    turned.save(tmp_path / "b.png", exif=turned.getexif())
    upright = read_image(tmp_path / "b.png", wanted)
    assert upright.shape == (3, 96, 32)
    assert torch.equal(upright[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(Unreadable, match=r"c\.png"):
        read_image(tmp_path / "c.png", wanted)


@pytest.mark.parametrize(
    ("fps", "frames", "expected"), [(16.0, 17, 17), (8.0, 17, 33), (32.0, 17, 9), (24.0, 17, 11), (16.0, 1, 1), (8.0, 1, 1)]
)
def test_a_sample_of_a_dataset_is_retimed_for_validation(fps: float, frames: int, expected: int) -> None:
    """As many frames as are shown from the window's first to its last one."""
    sample = Source("clips", Path("a"), Caption("a"), FRAME, Window(0.5, frames, fps))
    assert _as_wanted(sample, Wanted(32, 32, 16.0, 16_000, 1)).window == Window(0.5, expected, 16.0)


@pytest.mark.parametrize(
    ("wanted", "crop"),
    [
        ((32, 32), Crop((64, 32), (32, 32), (5, 0))),
        ((64, 32), Crop((64, 32), (64, 32), (0, 0))),
        ((64, 64), Crop((128, 64), (64, 64), (32, 0))),
        ((16, 16), Crop((32, 16), (16, 16), (8, 0))),
    ],
)
def test_a_sample_of_a_dataset_is_cut_anew_only_for_another_size(wanted: tuple[int, int], crop: Crop) -> None:
    sample = Source("clips", Path("a"), Caption("a"), Crop((64, 32), (32, 32), (5, 0)))
    assert _as_wanted(sample, Wanted(*wanted, 16.0, 16_000, 1)).crop == crop

"""Masked runs of every family on real files: where the gradient is, what cannot be asked for, and resume."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tests.runs.conftest import pictures, train, twin
from tests.runs.filming import film, films, twin_of, write_film
from tests.runs.test_resume import assert_same_run
from tunesmith import Batch, Loss, Run, Step
from tunesmith.config import ConfigErrors
from tunesmith.hooks import HookCaller
from tunesmith.trainer import Trainer

__all__ = ["film", "films", "pictures", "train", "twin", "twin_of"]

QUIET = ("validation.at_start=false", "validation.at_end=false")
SCALE = 8
"""Pixels along the edge of a latent of the video families' twins."""
TOKEN = 2
"""Latents along the edge of a token."""
SPANS: dict[str, dict[int, Sequence[range]]] = {
    "sana_video": {17: (range(1), *(range(first, first + 4) for first in range(1, 17, 4))), 9: (range(1), range(1, 5), range(5, 9))},
    "wan_s2v": {17: [range(first, first + 4) for first in range(1, 17, 4)], 9: (range(1, 5), range(5, 9))},
}
"""Which frames of a clip each latent frame is made of; the first of a speaking one is its reference."""


class Seen:
    """A micro-batch, the weights of its elements, and the gradient of its prediction."""

    def __init__(self, step: Step, loss: Loss) -> None:
        assert step.prediction is not None
        self.batch: Batch = step.batch
        self.keep = step.keep
        self.weight = loss.weights.get("masked")
        (self.gradient,) = torch.autograd.grad(loss.total, step.prediction, retain_graph=True)
        self.stems = [source.file.stem for source in step.batch.sources]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Every micro-batch of the runs of a test."""
    found: list[Seen] = []
    compute = HookCaller.compute_loss

    def watch(self: HookCaller, run: Run, step: Step) -> Loss:
        loss = compute(self, run, step)
        found.append(Seen(step, loss))
        return loss

    monkeypatch.setattr(HookCaller, "compute_loss", watch)
    return found


def blocks(values: NDArray[Any], side: int) -> Tensor:
    """Means over squares of pixels, [..., H, W] to [..., H / side, W / side], by NumPy alone."""
    *outer, height, width = values.shape
    return torch.from_numpy(values.reshape(*outer, height // side, side, width // side, side).mean(axis=(-3, -1)))


def assert_learns_where(gradient: Tensor, weight: Tensor) -> None:
    """No gradient at all where the weight [...] is 0, and some in every place where it is not; gradients are [C, ...]."""
    black = (weight == 0).expand_as(gradient)
    assert bool((gradient[black] == 0).all())
    assert bool((gradient.abs().amax(dim=0) > 0)[weight > 0].all())


@pytest.fixture
def discs(pictures: Path, tmp_path: Path) -> Path:
    """Soft masks of six of the eight pictures: a disc with a blurred edge, each somewhere else."""
    folder = tmp_path / "discs"
    folder.mkdir()
    for number in range(6):
        width, height = Image.open(pictures / f"{number}.png").size
        rows, columns = np.mgrid[0:height, 0:width]
        distance = np.hypot(rows - 20 - 4 * number, columns - width / 2 + 5 * number)
        Image.fromarray((255 * np.clip((22 - distance) / 8, 0, 1)).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def table(masks: Path, of: str, missing: str = "full") -> str:
    return f"[[datasets]]\nkind = 'mask'\nof = {of!r}\npath = {str(masks)!r}\nmissing = {missing!r}\n[plugins.masked]\n"


def shown(seen: Seen, row: int, folder: Path) -> NDArray[np.float64]:
    """What Pillow cuts out of a picture's mask for a sample, in [0, 1]."""
    source = seen.batch.sources[row]
    (left, top), (width, height) = source.crop.offset, source.crop.size
    file = folder / source.file.name
    if not file.exists():
        return np.ones((height, width))
    mask = Image.open(file).convert("L").resize(source.crop.resize, Image.Resampling.LANCZOS)
    return np.asarray(mask.crop((left, top, left + width, top + height))) / 255


@pytest.mark.parametrize("extra", [(), ("run.precision='bf16'", "run.gradient_checkpointing=true"), ("run.cache=false",)], ids=str)
def test_pictures_are_learnt_where_their_own_crop_of_the_mask_shows_them(train, pictures, discs, seen, extra) -> None:
    cropped = ("datasets.0.name='shapes'", "datasets.0.crop_aspect='square'", "datasets.0.variants=3", "run.steps=8")
    result = train("masked", table(discs, "shapes"), *cropped, *QUIET, *extra)
    places = set()
    for one in seen:
        assert one.weight is not None
        side = 64 // one.gradient.shape[-1]
        for row, source in enumerate(one.batch.sources):
            expected = blocks(shown(one, row, discs), side)
            torch.testing.assert_close(one.weight[row, 0].double(), expected, rtol=0, atol=1 / 255)
            assert_learns_where(one.gradient[row], one.weight[row, 0])
            places.add((source.file.stem, source.crop.offset))
    assert {stem for stem, _ in places} > {"6", "7"}
    assert len(places) > 8
    areas = [event["masked_area"] for event in result.events if event["event"] == "step"]
    assert areas == pytest.approx([float(one.weight.mean()) for one in seen if one.weight is not None])


def moving_mask(frames: int) -> NDArray[np.uint8]:
    """A bar that grows brighter and moves by its width every four frames, above one that moves in every frame, [F, 64, 96]."""
    mask = np.zeros((frames, 64, 96), np.uint8)
    for frame in range(frames):
        slow, fast = 2 * SCALE * ((frame + 3) // 4), SCALE * (frame % 12)
        mask[frame, 16:48, slow : slow + 2 * SCALE] = 85 + 10 * frame
        mask[frame, 48:, fast : fast + SCALE] = 255
    return mask


@pytest.fixture
def film_masks(tmp_path: Path) -> Path:
    """A picture for all frames of film a, clips for b and e, a picture for c; none for d."""
    folder = tmp_path / "film-masks"
    folder.mkdir()
    Image.fromarray(half(64, 96)).save(folder / "a.png")
    Image.fromarray(half(96, 64)).save(folder / "c.png")
    for stem, frames in (("b", 17), ("e", 9)):
        write_film(folder / f"{stem}.mkv", moving_mask(frames)[..., None].repeat(3, axis=-1), 200)
    return folder


def half(height: int, width: int) -> NDArray[np.uint8]:
    """White on the right."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    return mask


def expected_of_film(stem: str, frames: int, spans: Sequence[range]) -> Tensor:
    """The weights of a film's latents, [f, h, w]."""
    if stem == "d":
        return torch.ones(len(spans), 96 // SCALE, 64 // SCALE, dtype=torch.float64)
    if stem in "ac":
        still = half(64, 96) if stem == "a" else half(96, 64)
        return blocks(still / 255, SCALE).expand(len(spans), -1, -1)
    moving = moving_mask(frames)
    return blocks(np.stack([moving[span.start : span.stop].mean(axis=0) for span in spans]) / 255, SCALE)


@pytest.mark.parametrize("family", sorted(SPANS))
def test_clips_are_learnt_where_masks_show_them_in_their_own_frames(film, film_masks, seen, family) -> None:
    film(family, "masked", table(film_masks, "films"), "run.steps=12")
    assert {stem for one in seen for stem in one.stems} == set("abcde")
    for one in seen:
        frames = one.batch.tensor("mask").shape[2]
        assert one.weight is not None
        expected = expected_of_film(one.stems[0], frames, SPANS[family][frames])
        torch.testing.assert_close(one.weight[0, 0].double(), expected, rtol=0, atol=1e-6)
        assert_learns_where(one.gradient[0], one.weight[0, 0])
        assert one.keep is not None
        shown = (blocks(expected.numpy(), TOKEN) > 0.5).flatten()
        assert one.keep[0].tolist() == (shown & (one.stems[0] != "d")).tolist()
        assert one.keep.any() != (one.stems[0] == "d")


@pytest.mark.parametrize("family", sorted(SPANS))
def test_pictures_among_clips_are_learnt_where_masks_show_them(film, pictures, discs, seen, family) -> None:
    stills = f"[[datasets]]\nname = 'stills'\npath = {str(pictures)!r}\nresolution = 64\nresolution_type = 'pixel'\nrepeats = 3\n"
    film(family, "stills", stills + table(discs, "stills"), "run.steps=12")
    masked = [one for one in seen if one.batch.sources[0].dataset == "stills"]
    assert masked
    for one in masked:
        assert one.weight is not None
        expected = blocks(shown(one, 0, discs), SCALE)
        torch.testing.assert_close(one.weight[0, 0, 0].double(), expected, rtol=0, atol=1 / 255)
        assert_learns_where(one.gradient[0], one.weight[0, 0])
    for one in seen:
        if one not in masked:  # films, which have no masks, beside pictures that have
            assert one.weight is not None
            assert one.weight.unique().tolist() == [1]


def test_a_run_that_was_interrupted_masks_the_same_samples(train, discs, monkeypatch) -> None:
    settings = ("datasets.0.name='shapes'", "checkpoints.every=2", "run.gradient_accumulation=2")
    extra = table(discs, "shapes") + "probability = 0.5\nbackground = 0.1\nnormalise_by_area = true\n"
    straight = train("straight", extra, *settings)
    milestones = Trainer.milestones

    def interrupted(self: Any) -> None:
        milestones(self)
        if self.run.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "milestones", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("resumed", extra, *settings)
    monkeypatch.setattr(Trainer, "milestones", milestones)
    assert_same_run(straight, train("resumed", extra, *settings), 6)
    assert straight.losses != train("other", extra, *settings, "plugins.masked.probability=1").losses


def test_without_masks_the_plugin_says_what_is_missing(train, tmp_path) -> None:
    with pytest.raises(ConfigErrors) as refused:
        train("bare", "[plugins.masked]\n")
    line = (tmp_path / "bare.toml").read_text().splitlines().index("[plugins.masked]") + 1
    assert re.search(rf'bare\.toml:{line}: .*no dataset has masks .* kind = "mask", its `path`, and `of`', str(refused.value))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ('type = "hard"', r"'soft' or 'segmentation'"),
        ("probability = 0", r"greater than 0"),
        ("background = 1.5", r"at most 1"),
        ("normalize_by_area = true", r"normalise_by_area"),
    ],
)
def test_a_wrong_setting_gets_its_line(train, discs, tmp_path, setting, told) -> None:
    with pytest.raises(ConfigErrors) as refused:
        train("wrong", table(discs, "shapes") + setting + "\n", "datasets.0.name='shapes'")
    line = (tmp_path / "wrong.toml").read_text().splitlines().index(setting) + 1
    assert re.search(rf"wrong\.toml:{line}: .*{told}", str(refused.value))


def test_a_black_background_is_left_as_it_was_and_a_plain_run_changes_it(train, pictures, discs, seen) -> None:
    """The gradient of a plain run, for the same samples, noise and weights, is what masks let through."""
    settings = ("datasets.0.name='shapes'", "run.steps=1", *QUIET)
    train("masked", table(discs, "shapes"), *settings)
    train("plain", table(discs, "shapes").replace("[plugins.masked]", ""), *settings)
    masked, plain = seen
    assert masked.weight is not None
    assert plain.weight is None
    torch.testing.assert_close(masked.gradient, plain.gradient * masked.weight, rtol=1e-6, atol=0)

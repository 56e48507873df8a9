"""The pixel test tells the shapes apart, and compare.py counts and draws what a run left behind."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from PIL.PngImagePlugin import PngInfo

from compare import main
from pretrain.shapes import BACKGROUNDS, COLOURS, KNOWN_SHAPES, NEW_SHAPE, Scene, draw, known_scenes, new_pairs, new_scenes
from recogniser import Finding, recognise, shows, wanted


@pytest.mark.parametrize("shape", [*KNOWN_SHAPES, NEW_SHAPE])
@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_shape_is_recognised_in_every_colour_on_every_background(shape: str, colour: str, background: str) -> None:
    image = draw(Scene(shape, colour, background))
    assert recognise(image) == Finding(shape, colour, background)
    assert recognise(image.filter(ImageFilter.GaussianBlur(1))) == Finding(shape, colour, background)


def test_pictures_show_their_own_captions_wherever_the_shape_stands() -> None:
    for scene in [*known_scenes(100, seed=3), *new_scenes(seed=3)]:
        assert shows(draw(scene), scene.caption)


def test_another_shape_colour_or_background_is_not_what_was_asked_for() -> None:
    image = draw(Scene("ring", "red", "white"))
    assert not shows(image, "a red circle on a white background")
    assert not shows(image, "a blue ring on a white background")
    assert not shows(image, "a red ring on a black background")


def test_noise_plain_pictures_and_mixtures_are_rejected() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    halves = Image.new("RGB", (64, 64), "white")
    halves.paste("black", (0, 0, 32, 64))
    two = draw(Scene("circle", "red", "white", (0.3, 0.3), 0.2))
    two.paste(draw(Scene("square", "red", "white", (0.5, 0.5), 0.3)).resize((24, 24)), (36, 36))
    for image in (Image.fromarray(noise), Image.new("RGB", (64, 64), "white"), halves, two):
        assert recognise(image) is None


@pytest.mark.parametrize("shape", KNOWN_SHAPES)
def test_a_known_shape_with_a_small_hole_is_neither_itself_nor_a_ring(shape: str) -> None:
    image = draw(Scene(shape, "red", "white"))
    image.paste(BACKGROUNDS["white"], (28, 28, 38, 38))
    assert recognise(image) is None


def test_a_prompt_of_another_kind_is_an_error_that_shows_it() -> None:
    with pytest.raises(ValueError, match="a photo of a cat"):
        wanted("a photo of a cat")


def test_half_of_all_colour_pairs_are_left_for_validation() -> None:
    assert len(set(new_pairs())) == len(COLOURS) * len(BACKGROUNDS) // 2


def save(folder: Path, name: str, prompt: str, step: int, image: Image.Image) -> None:
    """Write a validation picture as Tunesmith does."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = PngInfo()
    entry.add_text("tunesmith", json.dumps({"prompt": prompt, "name": name, "seed": 1, "step": step}))
    image.save(folder / f"{name}-64x64-seed1.png", pnginfo=entry)


def test_compare_counts_before_and_after_and_draws_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring, circle = Scene("ring", "red", "black"), Scene("circle", "blue", "white")
    for step, first in ((0, draw(Scene("square", "red", "black"))), (50, draw(circle)), (100, draw(ring))):
        folder = tmp_path / "validation" / f"step-{step:06d}"
        save(folder, "ring-red-black", ring.caption, step, first)
        save(folder, "kept-circle", circle.caption, step, draw(circle))
    main([str(tmp_path)])
    output = capsys.readouterr().out
    assert "rings recognised: 0 of 1 before, 1 of 1 after" in output
    assert "kept shapes recognised: 1 of 1 before, 1 of 1 after" in output
    assert (tmp_path / "before-after.png").stat().st_size > 0


def test_compare_says_what_is_missing_from_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="validation"):
        main([str(tmp_path)])

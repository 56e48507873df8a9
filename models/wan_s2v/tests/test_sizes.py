"""The size of a video for a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tunesmith import InputError
from tunesmith_wan_s2v.inputs import Pictures, picture_pixels, picture_size, video_pixels
from tunesmith_wan_s2v.sizes import AREA_480P, AREA_720P, output_size

from .components import random
from .goldens import difference, facts


def test_sizes_are_those_of_the_reference() -> None:
    rows = facts("sizes")["rows"]
    assert len(rows) > 200
    assert [output_size(height, width, area) for height, width, area, _ in rows] == [tuple(size) for *_, size in rows]


def test_areas_are_those_of_wan() -> None:
    presets = facts("constants")["size_presets"]
    assert (presets["480p max area"], presets["720p max area"]) == (AREA_480P, AREA_720P)


@pytest.mark.parametrize("size", [(1, 1), (1, 100_000), (100_000, 1), (8, 30_000), (3, 3)])
def test_even_absurd_pictures_have_a_size_to_sample(size: tuple[int, int]) -> None:
    sides = output_size(*size)
    assert all(side >= 64 and side % 64 == 0 for side in sides)


def gradient(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([rows * 255 // height, columns * 255 // width, np.full_like(rows, 60)], axis=-1)
    return Image.fromarray(picture.astype(np.uint8))


def test_a_picture_of_the_right_size_keeps_its_values() -> None:
    image = gradient(32, 48)
    pixels = picture_pixels(image, 32, 48)
    assert pixels.shape == (1, 3, 32, 48)
    assert difference(pixels[0], torch.tensor(np.array(image)).movedim(-1, 0) / 127.5 - 1) < 1e-6


@pytest.mark.parametrize("size", [(64, 96), (70, 48), (48, 300), (31, 47), (480, 832)])
def test_a_picture_is_resized_until_it_covers_and_its_middle_is_cut_out(size: tuple[int, int]) -> None:
    height, width = size
    image = gradient(height, width)
    pixels = picture_pixels(image, 32, 48)
    scale = max(32 / height, 48 / width)
    rows = (torch.arange(32) + 0.5 - 16) / (scale * height) + 0.5  # where each row lies in the whole picture
    columns = (torch.arange(48) + 0.5 - 24) / (scale * width) + 0.5
    assert difference(pixels[0, 0, 3:-3], (rows * 2 - 1)[3:-3, None].expand(-1, 48)) < 0.1
    assert difference(pixels[0, 1, :, 3:-3], (columns * 2 - 1)[None, 3:-3].expand(32, -1)) < 0.1


def test_images_arrays_and_tensors_of_one_picture_give_the_same_pixels() -> None:
    image = gradient(50, 60)
    array = (np.array(image) / 255).astype(np.float32)
    tensor = torch.from_numpy(array).movedim(-1, 0)
    assert picture_size(image) == picture_size(array) == picture_size(tensor) == picture_size([image, image]) == (50, 60)
    pixels = picture_pixels(image, 32, 32)
    others: tuple[Pictures, ...] = (array, tensor, tensor[None], [image])
    for other in others:
        assert difference(picture_pixels(other, 32, 32), pixels) < 0.02  # Pillow rounds to bytes
    assert picture_pixels([image, image], 32, 32).shape == (2, 3, 32, 32)


def test_videos_are_pictures_along_time() -> None:
    frames = [gradient(40, 40), gradient(60, 40), gradient(40, 60)]
    video = video_pixels(frames, 32, 32)
    assert video.shape == (1, 3, 3, 32, 32)
    assert torch.equal(video[0, :, 1], picture_pixels(frames[1], 32, 32)[0])
    assert torch.equal(video_pixels([frames, frames], 32, 32)[1], video[0])
    values = random(5, 3, 32, 32).sigmoid()
    assert torch.equal(video_pixels(values, 32, 32)[0], values.movedim(0, 1) * 2 - 1)
    assert video_pixels(values[None], 32, 32).shape == video_pixels(values.movedim(1, -1).numpy(), 32, 32).shape == (1, 3, 5, 32, 32)


@pytest.mark.parametrize("image", [torch.zeros(1, 32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(32, 32)])
def test_what_is_no_picture_is_refused(image: torch.Tensor) -> None:
    with pytest.raises(InputError, match="must be floats"):
        picture_pixels(image, 32, 32)


@pytest.mark.parametrize("value", [-1.0, 255.0, float("nan")])
def test_values_beyond_0_and_1_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        picture_pixels(torch.full((3, 32, 32), value), 32, 32)


def test_values_that_were_rounded_beyond_0_and_1_are_taken_as_those() -> None:
    values = torch.tensor([-1e-6, 1 + 1e-6]).repeat_interleave(512).expand(3, 1024).reshape(3, 32, 32)
    assert torch.equal(picture_pixels(values, 32, 32)[0], values.round() * 2 - 1)

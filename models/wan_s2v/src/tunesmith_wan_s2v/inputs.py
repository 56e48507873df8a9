"""Pictures and videos as pixels of the size that is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tunesmith import InputError, to_pixels

Picture: TypeAlias = Image.Image | NDArray[np.float32] | Tensor
"""A Pillow image, an array [..., H, W, 3] or a tensor [..., 3, H, W] in [0, 1]."""
Pictures: TypeAlias = Picture | Sequence[Picture]
Videos: TypeAlias = NDArray[np.float32] | Tensor | Sequence[Picture] | Sequence[Sequence[Picture]]

_ROUNDING = 1e-3
"""How far values may lie beyond 0 and 1, as those do that were mapped there from [-1, 1]."""


def picture_size(image: Pictures) -> tuple[int, int]:
    """The (height, width) of a picture, or of the first of several."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, np.ndarray):
        return int(image.shape[-3]), int(image.shape[-2])
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    return picture_size(image[0])


def picture_pixels(image: Pictures, height: int, width: int) -> Tensor:
    """One or several pictures as fp32 [B, 3, height, width] in [-1, 1].

    Each is resized with antialiasing (bilinear) until it just covers the size, and its middle is cut out. Raises
    InputError for arrays and tensors that are not pictures in [0, 1].
    """
    if isinstance(image, Image.Image):
        return _fitted_image(image, height, width)[None]
    if isinstance(image, np.ndarray):
        return picture_pixels(torch.from_numpy(image).movedim(-1, -3), height, width)
    if isinstance(image, Tensor):
        return _fitted_tensor(image, height, width)
    return torch.cat([picture_pixels(one, height, width) for one in image])


def video_pixels(video: Videos, height: int, width: int) -> Tensor:
    """One or several videos as fp32 [B, 3, F, height, width] in [-1, 1], resized and cut as pictures are.

    A video is a sequence of pictures, an array [F, H, W, 3] or a tensor [F, 3, H, W]; several are a sequence of such
    sequences, or have one dimension more. Raises InputError as `picture_pixels` does.
    """
    if isinstance(video, np.ndarray | Tensor):
        videos: Sequence[Any] = list(video if video.ndim == 5 else video[None])
    else:
        videos = video if isinstance(video[0], Sequence) else [video]
    return torch.stack([picture_pixels(frames, height, width).movedim(0, 1) for frames in videos])


def _fitted_image(image: Image.Image, height: int, width: int) -> Tensor:
    rows, columns = _covering(image.height, image.width, height, width)
    top, left = _middle(rows, columns, height, width)
    resized = image.convert("RGB").resize((columns, rows), Image.Resampling.BILINEAR)
    return to_pixels(np.array(resized.crop((left, top, left + width, top + height)), dtype=np.uint8))


def _fitted_tensor(image: Tensor, height: int, width: int) -> Tensor:
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
        raise InputError(f"a picture of shape {tuple(image.shape)} and {image.dtype} came; it must be floats [3, H, W] or [B, 3, H, W]")
    if image.numel() and not (image.min() >= -_ROUNDING and image.max() <= 1 + _ROUNDING):
        raise InputError(f"a picture with values from {image.min():.3g} to {image.max():.3g} came; they must lie in [0, 1]")
    pixels = image.to(torch.float32).clamp(0, 1).reshape(-1, *image.shape[-3:])  # [B, 3, h, w]
    rows, columns = _covering(pixels.shape[-2], pixels.shape[-1], height, width)
    if (rows, columns) != tuple(pixels.shape[-2:]):
        pixels = F.interpolate(pixels, (rows, columns), mode="bilinear", antialias=True)
    top, left = _middle(rows, columns, height, width)
    return pixels[..., top : top + height, left : left + width] * 2 - 1


def _covering(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """The smallest size of the picture's own aspect that covers (height, width)."""
    if width * rows <= height * columns:
        return height, max(width, height * columns // rows)
    return max(height, width * rows // columns), width


def _middle(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    return round((rows - height) / 2), round((columns - width) / 2)

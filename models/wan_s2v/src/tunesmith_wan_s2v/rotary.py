"""Where every token stands in time, height and width, and the rotary factors for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith import take_rows

RotaryPair: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines, each [1 or B, S, 1, D] in fp32, every factor twice: what diffusers' `WanAttnProcessor` takes."""

REFERENCE_TIME = 30
"""The time of reference tokens, however long the clip is."""
PACKED_FRAMES = (1, 2, 16)
"""Latent frames in each group of packed motion, nearest first."""
BASE = 10000.0
_REMEMBERED = 2


@dataclass(frozen=True)
class TokenBox:
    """The positions of one group of tokens: every frame with every row with every column, columns fastest."""

    frames: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many tokens stand in it."""
        return len(self.frames) * len(self.rows) * len(self.columns)


def video_box(frames: int, height: int, width: int) -> TokenBox:
    """The tokens of a clip of so many latent frames, rows and columns of tokens."""
    return TokenBox(tuple(range(frames)), tuple(range(height)), tuple(range(width)))


def reference_box(height: int, width: int) -> TokenBox:
    """The tokens of the reference picture, which may have a size of its own."""
    return TokenBox((REFERENCE_TIME,), tuple(range(height)), tuple(range(width)))


def motion_box(frames: int, height: int, width: int) -> TokenBox:
    """The tokens of unpacked motion frames, which lie directly before the clip."""
    return TokenBox(tuple(range(-frames, 0)), tuple(range(height)), tuple(range(width)))


def packed_motion_boxes(height: int, width: int, num_groups: int = 3) -> tuple[TokenBox, ...]:
    """The tokens of packed motion, nearest group first; `height` and `width` count tokens of the clip, which are two latents long.

    Groups hold 1, 2 and 16 latent frames, made into tokens of 1, 2 and 4 frames and of 1, 2 and 4 times the sides. Each is
    spread over the clip's own rows and columns, so its positions are those of the clip, thinned out. `num_groups` leaves out
    the nearest ones: 2 keeps all but the first.
    """
    boxes = []
    before = 0
    for num_frames, factor in zip(PACKED_FRAMES, (1, 2, 4), strict=True):
        before += num_frames
        frames = tuple(-time for time in _truncated(before, before - num_frames + 1, num_frames // factor))
        boxes.append(TokenBox(frames, _thinned(height, factor), _thinned(width, factor)))
    return tuple(boxes[3 - num_groups :])


def rotary_factors(boxes: Sequence[TokenBox], head_dim: int, device: torch.device) -> RotaryPair:
    """Cosines and sines [1, S, 1, head_dim] of the tokens of all boxes, one box after the other.

    Head features (2j, 2j + 1) are turned by `position * 10000 ** (-2j / a)`, where a is the number of features of the axis:
    height and width have 2 * (head_dim // 6) each, time the rest, and time comes first. Angles are made in float64;
    a negative time turns the other way.
    """
    pairs = [_box_factors(box, head_dim, device) for box in boxes]
    cosines, sines = (torch.cat(parts).view(1, -1, 1, head_dim) for parts in zip(*pairs, strict=True))
    return cosines, sines


def take_rotary(pair: RotaryPair, indices: Tensor) -> RotaryPair:
    """The factors [B, K, 1, D] of the tokens at `indices` [B, K]."""
    cosines, sines = pair
    return take_rows(cosines, indices), take_rows(sines, indices)


class RotaryFactors(nn.Module):
    """`rotary_factors` with a memory of the last geometries; it has neither weights nor buffers, so casts do not reach it."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self._made: dict[tuple[object, ...], RotaryPair] = {}

    def forward(self, boxes: tuple[TokenBox, ...], device: torch.device) -> RotaryPair:
        """Cosines and sines [1, S, 1, head_dim] on the device."""
        key = (boxes, device, torch.is_inference_mode_enabled())  # tensors of inference mode cannot be saved for backward
        if key not in self._made:
            while len(self._made) >= _REMEMBERED:
                self._made.pop(next(iter(self._made)))
            self._made[key] = rotary_factors(boxes, self.head_dim, device)
        return self._made[key]


def _thinned(side: int, factor: int) -> tuple[int, ...]:
    return _truncated(0, side - 1, side // factor)


def _truncated(first: int, last: int, count: int) -> tuple[int, ...]:
    """`count` whole numbers from `first` to `last`; a single one is `first`.

    NumPy's float64 linspace cut off towards zero: other libraries and precisions differ by one here and there.
    """
    return tuple(int(number) for number in np.linspace(first, last, count).astype(np.int64))


def _box_factors(box: TokenBox, head_dim: int, device: torch.device) -> RotaryPair:
    side = 2 * (head_dim // 6)
    shape = (len(box.frames), len(box.rows), len(box.columns))
    axes = ((box.frames, head_dim - 2 * side), (box.rows, side), (box.columns, side))
    cosines, sines = [], []
    for axis, (positions, features) in enumerate(axes):
        exponents = torch.arange(0, features, 2, dtype=torch.float64) / features
        angles = torch.tensor(positions, dtype=torch.float64)[:, None] * BASE**-exponents
        angles = angles.repeat_interleave(2, dim=1)
        view = [1, 1, 1, features]
        view[axis] = len(positions)
        cosines.append(angles.cos().float().to(device).view(view).expand(*shape, features))
        sines.append(angles.sin().float().to(device).view(view).expand(*shape, features))
    return torch.cat(cosines, dim=-1).flatten(0, 2), torch.cat(sines, dim=-1).flatten(0, 2)

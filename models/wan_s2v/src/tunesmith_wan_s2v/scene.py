"""What a video is made of, how it is made, and what one clip of it is denoised under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith import InputError


@dataclass(frozen=True)
class Scene:
    """B videos that are made at once: their text, sound, reference and pose.

    `prompt` and `negative` are [B, tokens, D]; `audio` [B, layers, width, frames of all clips]; `reference` latents
    [B, C, 1, h, w] of `pixels` [B, 3, H, W]; `poses` hold [1 or B, 3, its frames + 1, H, W] for each clip.
    """

    prompt: Tensor
    negative: Tensor | None
    audio: Tensor
    reference: Tensor
    pixels: Tensor | None
    poses: list[Tensor] | None


@dataclass(frozen=True)
class Sampling:
    """How a clip is sampled; `sigmas`, before the shift, count instead of `steps` where they are given."""

    steps: int
    sigmas: Sequence[float] | NDArray[np.float64] | None
    guidance: float

    def timesteps(self, scheduler: Any, device: torch.device) -> Tensor:
        """The timesteps of a clip, [steps], from a scheduler that is begun anew."""
        if self.sigmas is None:
            scheduler.set_timesteps(self.steps, device=device)
        else:
            scheduler.set_timesteps(sigmas=np.asarray(self.sigmas), device=device)
        timesteps: Tensor = scheduler.timesteps
        return timesteps


@dataclass(frozen=True)
class Shooting:
    """Size and length of a video, what its first clip goes on from, and how it is sampled."""

    height: int
    width: int
    num_clips: int
    frames_per_clip: int
    motion_frames: int
    from_reference: bool
    sampling: Sampling


@dataclass(frozen=True)
class Conditions:
    """What a clip is denoised under, in the words of the transformer; `motion_latents` is None for one that continues nothing."""

    audio_embeds: Tensor
    image_latents: Tensor
    pose_latents: Tensor | None
    motion_latents: Tensor | None
    motion_frames: tuple[int, int]

    def arguments(self) -> dict[str, Any]:
        """The arguments of the transformer."""
        return {**vars(self), "drop_motion_frames": self.motion_latents is None}

    def to(self, dtype: torch.dtype) -> Conditions:
        """The same with latents in another precision; the transformer itself sees to that of the sound."""
        pose, motion = (None if latents is None else latents.to(dtype) for latents in (self.pose_latents, self.motion_latents))
        return Conditions(self.audio_embeds, self.image_latents.to(dtype), pose, motion, self.motion_frames)


def repeated(values: Tensor, count: int, what: str) -> Tensor:
    """Values [1 or count, ...] as [count, ...]; InputError for any other number of them."""
    if values.shape[0] not in (1, count):
        raise InputError(f"there are {values.shape[0]} {what} for {count} prompts; give one for all of them, or one for each")
    return values if values.shape[0] == count else values.expand(count, *values.shape[1:])

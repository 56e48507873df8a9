"""A long video as clips one after the other: what each takes over from the ones before, and its share of pose and sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith import InputError

FRAMES_PER_LATENT = 4
MOTION_FRAMES = 73
"""Frames before a clip that it continues: 19 latents."""
WARM_UP_FRAMES = 3
"""Frames at the start of a video that are made and thrown away; its sound begins with the first that is kept, so many frames in."""
_REFERENCE_FRAMES = 6


def check_frames(frames_per_clip: int, motion_frames: int) -> None:
    """InputError unless a clip is a whole number of latents and the frames before it are 4n + 1."""
    if frames_per_clip < FRAMES_PER_LATENT or frames_per_clip % FRAMES_PER_LATENT:
        raise InputError(
            f"{frames_per_clip} frames a clip were asked for; they must be a multiple of {FRAMES_PER_LATENT}, such as 48 or 80"
        )
    if motion_frames < 1 or motion_frames % FRAMES_PER_LATENT != 1:
        raise InputError(f"{motion_frames} motion frames were asked for; they must be 4n + 1, such as {MOTION_FRAMES}")


def latent_frames(frames: int) -> int:
    """Latents of so many frames: one of the first, and one of each four behind it."""
    return (frames + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT


def first_motion(shape: tuple[int, int, int, int, int], reference: Tensor | None) -> Tensor:
    """What comes before a video, [B, 3, F, H, W]: grey (0), its last six frames the reference [B, 3, H, W] if one is given."""
    motion = torch.zeros(shape)
    if reference is not None:
        motion[:, :, -_REFERENCE_FRAMES:] = reference[:, :, None]
    return motion


def next_motion(motion: Tensor, frames: Tensor) -> Tensor:
    """The last frames of what came before and of a new clip, as many as before; all [B, 3, F, H, W]."""
    return torch.cat([motion, frames], dim=2)[:, :, -motion.shape[2] :]


def pose_clips(video: Tensor, num_clips: int, frames_per_clip: int) -> list[Tensor]:
    """A pose video [B, 3, F, H, W] as one [B, 3, frames_per_clip + 1, H, W] for each clip.

    Frames past its end are black (-1). The first frame of each clip is repeated in front, so that the latent that
    stands for a single frame can be dropped and the others stand for four each.
    """
    length = num_clips * frames_per_clip
    video = video[:, :, :length]
    video = F.pad(video, (0, 0, 0, 0, 0, length - video.shape[2]), value=-1.0)
    return [torch.cat([clip[:, :, :1], clip], dim=2) for clip in torch.split(video, frames_per_clip, dim=2)]


def fit_audio(audio: Tensor, num_frames: int) -> Tensor:
    """Audio features [B, layers, width, F] for so many frames: cut off, or silent (zeros) past their end."""
    audio = audio[..., :num_frames]
    return F.pad(audio, (0, num_frames - audio.shape[-1]))

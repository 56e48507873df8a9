"""What the cache keeps of a sample beside the latents that are trained on: what else the network is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith import AUDIO, CONTROL, HISTORY, PIXELS, REFERENCE, Batch, Ragged, Source

from . import vae as autoencoder
from .clips import FRAMES_PER_LATENT, MOTION_FRAMES, pose_clips
from .sound import SAMPLE_RATE, silence, window_features

REFERENCE_LATENTS = "reference_latents"
"""[C, 1, h, w]: the first frame, or the reference picture beside the sample, encoded alone."""
AUDIO_EMBEDS = "audio_embeds"
"""[layers, width, 4n]: what is heard during frames 1 to 4n.

Silence is zeros, as the pipeline has it past the end of a sound: behind the last sample of the window that is not exactly
zero, which is where its sound is cut off before it is encoded, and everywhere for a picture and for a window of zeros alone.
"""
AUDIO_RECIPE = "sound-2"
"""Names how a waveform becomes features, and changes with it."""
MOTION_LATENTS = "motion_latents"
"""Ragged [19 or 0, C, h, w]: the 73 frames that end with the first of the clip; none where they are not all there."""
CONTROL_LATENTS = "control_latents"
"""Ragged [n or 0, C, h, w]: the clip of poses beside the sample; none where there is none."""

HISTORY_FRAMES = MOTION_FRAMES - 1
"""Frames before a clip that are asked for: its first frame is the last of those that the trained ones go on from."""
PACKED_EDGE = 64
"""Pixels along an edge below which the network cannot pack the motion before a clip."""


def encode_reference(vae: Any, batch: Batch) -> Tensor:
    """The latents [B, C, 1, h, w] of the reference pictures, or of the first frames where there are none."""
    picture = batch.inputs[REFERENCE] if REFERENCE in batch.inputs else _frames(batch, PIXELS)[:, :, 0]
    return autoencoder.encode(vae, picture[:, :, None])


def encode_motion(vae: Any, batch: Batch) -> Ragged:
    """The latents of the 73 frames before what is trained on, of each clip that has them all."""
    rows = []
    for number, source in enumerate(batch.sources):
        if HISTORY not in batch.inputs or not has_history(source):
            rows.append(_nothing(vae, batch))
            continue
        before, first = batch.inputs[HISTORY][number], _frames(batch, PIXELS)[number, :, :1]
        rows.append(_by_frame(autoencoder.encode(vae, torch.cat([before, first], dim=1)[None])))
    return Ragged(rows)


def encode_control(vae: Any, batch: Batch) -> Ragged:
    """The latents of the clips of poses, as the pipeline makes them of the frames that are trained on."""
    if CONTROL not in batch.inputs:
        return Ragged([_nothing(vae, batch)] * len(batch.sources))
    frames = _frames(batch, CONTROL)[:, :, 1:]
    [poses] = pose_clips(frames, 1, frames.shape[2])
    return Ragged([_by_frame(latents[None]) for latents in autoencoder.encode(vae, poses)[:, :, 1:]])


def encode_audio(encoder: Any, processor: Any, batch: Batch) -> Tensor:
    """What is heard while each latent of a batch lasts, fp32 [B, layers, width, 4n], from the sound of the same frames.

    Zeros at the end of the sound of a window are cut off before it is encoded, and there is nothing behind them.
    """
    rows = [_heard(encoder, processor, source, sound) for source, sound in zip(batch.sources, batch.inputs[AUDIO], strict=True)]
    return torch.stack(rows)


def lasting(frames: Tensor) -> Tensor:
    """Clips [B, 3, F, H, W] as they are; of a picture, F = 1, five equal frames, which make two latents."""
    return frames.expand(-1, -1, 1 + FRAMES_PER_LATENT, -1, -1) if frames.shape[2] == 1 else frames


def has_history(source: Source) -> bool:
    """Whether a sample is a clip with all the frames before it that are given to the model, and large enough to pack them."""
    window = source.window
    return window is not None and round(window.start * window.fps) >= HISTORY_FRAMES and min(source.crop.size) >= PACKED_EDGE


def _heard(encoder: Any, processor: Any, source: Source, sound: Tensor) -> Tensor:
    window = source.window
    if window is None or window.frames == 1:
        return silence(encoder.config, FRAMES_PER_LATENT).to(sound.device)
    behind_first = sound[:, round(SAMPLE_RATE / window.fps) :]
    return window_features(encoder, processor, behind_first, window.frames - 1, window.fps).to(sound.device)


def _frames(batch: Batch, need: str) -> Tensor:
    """An input as clips [B, 3, 4n + 1, H, W]."""
    if need not in batch.inputs:
        raise RuntimeError(f"latents are wanted of a batch that has no {need}")
    frames = batch.inputs[need]
    return lasting(frames if frames.ndim == 5 else frames[:, :, None])


def _by_frame(latents: Tensor) -> Tensor:
    """One sample's latents [1, C, T, h, w] as [T, C, h, w]."""
    return latents[0].transpose(0, 1).contiguous()


def _nothing(vae: Any, batch: Batch) -> Tensor:
    """The latents of no frames, [0, C, h, w], of the size that the batch has."""
    width, height = batch.sources[0].crop.size
    scale = vae.config.scale_factor_spatial
    return torch.zeros((0, vae.config.z_dim, height // scale, width // scale))


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Latents of each sample, [T, C, h, w], as the network takes them: [B, C, T, h, w]."""
    return torch.stack(list(rows)).transpose(1, 2)

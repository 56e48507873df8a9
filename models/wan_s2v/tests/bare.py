"""The inference of Wan 2.2 S2V written out for a test: no pipeline, only the networks and a stock scheduler."""

from __future__ import annotations

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from tunesmith_wan_s2v import WanSpeechToVideoPipeline

from .goldens import facts

MOTION = 9
"""Frames before a clip; Wan has 73, which take longer."""


def normalise(pipe: WanSpeechToVideoPipeline, pixels: Tensor) -> Tensor:
    known = facts("constants")["vae"]
    mean, deviation = (torch.tensor(known[name]).view(1, 16, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    latents: Tensor = (pipe.vae.encode(pixels).latent_dist.mean - mean) / deviation
    return latents


def show(pipe: WanSpeechToVideoPipeline, latents: Tensor) -> Tensor:
    known = facts("constants")["vae"]
    mean, deviation = (torch.tensor(known[name]).view(1, 16, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    pixels: Tensor = pipe.vae.decode(latents * deviation + mean).sample
    return pixels


@torch.no_grad()
def film(
    pipe: WanSpeechToVideoPipeline,
    pixels: Tensor,
    text: Tensor,
    negative: Tensor,
    audio: Tensor,
    *,
    clips: int,
    frames: int,
    steps: int,
    guidance: float,
    seed: int,
    pose: Tensor | None = None,
    from_reference: bool = False,
) -> Tensor:
    """Frames [1, 3, F, H, W] in [-1, 1] for a picture [1, 3, H, W] in [-1, 1]; a pose video [1, 3, F, H, W] likewise."""
    generator = torch.Generator().manual_seed(seed)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    height, width = pixels.shape[-2:]
    reference = normalise(pipe, pixels[:, :, None])
    motion = torch.zeros(1, 3, MOTION, height, width)
    if from_reference:
        motion[:, :, -6:] = pixels[:, :, None]
    if pose is not None:  # black frames (-1) behind its end
        pose = torch.cat([pose, -torch.ones(1, 3, clips * frames, height, width)], dim=2)[:, :, : clips * frames]
    film: list[Tensor] = []
    for clip in range(clips):
        first = clip == 0 and not from_reference
        here = slice(clip * frames, (clip + 1) * frames)
        sample = torch.randn((1, 16, frames // 4, height // 8, width // 8), generator=generator)
        motion_latents = normalise(pipe, motion)
        pose_latents = torch.zeros_like(sample)
        if pose is not None:
            pose_latents = normalise(pipe, torch.cat([pose[:, :, here][:, :, :1], pose[:, :, here]], dim=2))[:, :, 1:]
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            with_sound, without = (
                pipe.transformer(
                    hidden_states=sample,
                    timestep=timestep[None],
                    encoder_hidden_states=words,
                    motion_latents=motion_latents,
                    audio_embeds=heard,
                    image_latents=reference,
                    pose_latents=pose_latents,
                    motion_frames=[MOTION, (MOTION + 3) // 4],
                    drop_motion_frames=first,
                ).sample
                for words, heard in ((text, audio[..., here]), (negative, audio[..., here] * 0))
            )
            sample = scheduler.step(without + guidance * (with_sound - without), timestep, sample).prev_sample
        decoded = show(pipe, torch.cat([reference if first else motion_latents, sample], dim=2))[:, :, -frames:]
        decoded = decoded[:, :, 3:] if first else decoded
        overlap = min(MOTION, decoded.shape[2])
        motion = torch.cat([motion[:, :, overlap:], decoded[:, :, -overlap:]], dim=2)
        film.append(decoded)
    return torch.cat(film, dim=2)

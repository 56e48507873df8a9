"""What the network is told besides the noisy video: time, text, sound, pose, and the motion before the clip."""

from __future__ import annotations

from typing import TypeAlias

import torch
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from torch import Tensor, nn

from .audio import CausalAudioEncoder
from .rotary import PACKED_FRAMES, TokenBox, packed_motion_boxes

Patch: TypeAlias = tuple[int, int, int]
"""Frames, rows and columns of latents that become one token."""


class ConditionEmbedder(WanTimeTextImageEmbedding):  # type: ignore[misc]
    """The time and text embedding of every Wan, with the pose and the sound of this one."""

    def __init__(
        self, dim: int, freq_dim: int, text_dim: int, audio_dim: int, pose_dim: int, patch: Patch, num_layers: int, adaptive: bool
    ) -> None:
        super().__init__(dim, freq_dim, 6 * dim, text_dim)
        self.pose_embedder = nn.Conv3d(pose_dim, dim, kernel_size=patch, stride=patch)
        self.causal_audio_encoder = CausalAudioEncoder(audio_dim, dim, num_layers, adaptive)

    def forward(
        self,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pose_latents: Tensor,
        audio_embeds: Tensor,
        motion_frames: tuple[int, int],
        zero_timestep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Embed all conditions of a step; time and sound in full precision under autocast too, as the model was trained.

        Gives the time [B, D], its modulation [B, 6, 2, D] of video tokens (first) and condition tokens (second), the text
        [B, L, D], the pose [B, D, T, h, w], the sound's tokens [B, T, 5, D] and their summary [B, T, 1, D].
        `zero_timestep`: condition tokens are clean, so their modulation is that of timestep 0.
        """
        with torch.autocast(timestep.device.type, enabled=False):
            times = torch.cat([timestep, timestep.new_zeros(1)]) if zero_timestep else timestep
            temb, modulation = self._embed_time(times)
            local, summary = self.causal_audio_encoder(audio_embeds, motion_frames)
        batch = timestep.shape[0]
        of_conditions = modulation[batch:].expand(batch, -1, -1) if zero_timestep else modulation
        modulation = torch.stack([modulation[:batch], of_conditions], dim=2)
        text = self.text_embedder(encoder_hidden_states)
        summary = None if summary is None else summary.type_as(text)
        return temb[:batch], modulation, text, self.pose_embedder(pose_latents), local.type_as(text), summary

    def _embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B] to their embedding [B, D] and its modulation [B, 6, D]."""
        waves = self.timesteps_proj(timestep)
        temb = self.time_embedder(waves.to(self.time_embedder.linear_1.weight.dtype))
        modulation = self.time_proj(self.act_fn(temb).to(self.time_proj.weight.dtype))
        return temb, modulation.unflatten(1, (6, -1))


class FramePacker(nn.Module):
    """Pack the last 19 latent frames before the clip into few tokens, the older the coarser.

    The newest frame is cut into patches as the video is; the two before it into tokens of two frames and twice the sides,
    the 16 before those into tokens of four frames and four times the sides.
    Source: Zhang and Agrawala, Packing Input Frame Context in Next-Frame Prediction Models, 2025.
    """

    def __init__(self, in_channels: int, dim: int, patch: Patch, drop_mode: str) -> None:
        super().__init__()
        self.drops = drop_mode == "drop"
        single, double, quadruple = (_enlarged(patch, factor) for factor in (1, 2, 4))
        self.proj = nn.Conv3d(in_channels, dim, kernel_size=single, stride=single)
        self.proj_2x = nn.Conv3d(in_channels, dim, kernel_size=double, stride=double)
        self.proj_4x = nn.Conv3d(in_channels, dim, kernel_size=quadruple, stride=quadruple)

    def forward(self, motion_latents: Tensor, add_last_motion: int) -> Tensor:
        """Latents [B, C, T, H, W] to tokens [B, M, D], those of the newest frames first.

        Frames that are not there count as zeros. `add_last_motion` 1 takes away the newest frame, 0 the newest three:
        where the packer drops, their tokens are left out, else the frames become zeros.
        """
        batch, channels, frames, height, width = motion_latents.shape
        motion = motion_latents.new_zeros(batch, channels, sum(PACKED_FRAMES), height, width)
        given = min(frames, sum(PACKED_FRAMES))
        hidden = 0 if self.drops else sum(PACKED_FRAMES[: 2 - add_last_motion])
        motion[:, :, sum(PACKED_FRAMES) - given :] = motion_latents[:, :, frames - given :]
        motion[:, :, sum(PACKED_FRAMES) - hidden :] = 0
        old, middle, new = torch.split(motion, list(PACKED_FRAMES[::-1]), dim=2)
        groups = ((self.proj, new), (self.proj_2x, middle), (self.proj_4x, old))
        tokens = [project(part).flatten(2).transpose(1, 2) for project, part in groups[3 - self.num_groups(add_last_motion) :]]
        return torch.cat(tokens, dim=1)

    def num_groups(self, add_last_motion: int) -> int:
        """How many of the three groups have tokens."""
        return 1 + add_last_motion if self.drops else 3

    def boxes(self, height: int, width: int, add_last_motion: int) -> tuple[TokenBox, ...]:
        """Where the tokens stand; `height` and `width` count tokens of the clip."""
        return packed_motion_boxes(height, width, self.num_groups(add_last_motion))


def _enlarged(patch: Patch, factor: int) -> Patch:
    frames, height, width = patch
    return factor * frames, factor * height, factor * width

"""From hidden states of a speech model to tokens of each latent frame, and from those into the video."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn
from torch.nn import functional

STEPS_PER_FRAME = 4
"""Steps of sound for each latent frame of video."""
_HEADS = 4
_KERNEL = 3
_ADAPTIVE_EPS, _PLAIN_EPS = 1e-5, 1e-6


class CausalConv(nn.Module):
    """A convolution along time that sees nothing of the future; the first step stands for what came before it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, _KERNEL, stride)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, L] to [B, D, (L - 1) // stride + 1]."""
        out: Tensor = self.conv(functional.pad(features, (_KERNEL - 1, 0), mode="replicate"))
        return out


class LocalAndGlobal(nn.Module):
    """Make one in four of the steps of sound into tokens: four heads and a learnt one, and a summary for modulation."""

    def __init__(self, audio_dim: int, dim: int, with_global: bool) -> None:
        super().__init__()
        quarter, half = dim // 4, dim // 2
        self.conv1_local = CausalConv(audio_dim, quarter * _HEADS)
        self.conv1_global = CausalConv(audio_dim, quarter) if with_global else None
        self.conv2 = CausalConv(quarter, half, stride=2)
        self.conv3 = CausalConv(half, dim, stride=2)
        self.final_linear = nn.Linear(dim, dim) if with_global else None
        self.norms = nn.ModuleList([FP32LayerNorm(width, _PLAIN_EPS, elementwise_affine=False) for width in (quarter, half, dim)])
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [B, C, L] to local tokens [B, F, 5, D] and the summary [B, F, 1, D], or None without one."""
        batch = features.shape[0]
        heads = self.conv1_local(features).unflatten(1, (_HEADS, -1)).flatten(0, 1)  # [B * 4, D / 4, L]
        local = torch.unflatten(self._shrink(heads), 0, (batch, _HEADS)).transpose(1, 2)  # [B, F, 4, D]
        local = torch.cat([local, self.padding_tokens.expand(batch, local.shape[1], 1, -1)], dim=2)
        if self.conv1_global is None or self.final_linear is None:
            return local, None
        return local, self.final_linear(self._shrink(self.conv1_global(features)))[:, :, None]

    def _shrink(self, features: Tensor) -> Tensor:
        """[B, D / 4, L] to [B, F, D], a quarter as long; both branches share these convolutions."""
        features = self._activate(0, features)
        features = self._activate(1, self.conv2(features.transpose(1, 2)))
        return self._activate(2, self.conv3(features.transpose(1, 2)))

    def _activate(self, norm: int, features: Tensor) -> Tensor:
        """[B, C, L] to [B, L, C]."""
        return functional.silu(self.norms[norm](features.transpose(1, 2)))


class CausalAudioEncoder(nn.Module):
    """Weigh the layers of the speech model and encode them along time (section 5.5 of the model's description)."""

    def __init__(self, audio_dim: int, dim: int, num_layers: int, with_global: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((1, num_layers, 1, 1), 0.01))
        self.encoder = LocalAndGlobal(audio_dim, dim, with_global)

    def forward(self, audio_embeds: Tensor, motion_frames: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Layers [B, layers, C, 4 * T] to tokens [B, T, 5, D] and their summary [B, T, 1, D], or None without one.

        What was heard before the clip is its first step, for as many (frames, latent frames) as motion has.
        """
        before, latents_before = motion_frames
        audio_embeds = audio_embeds.to(self.weights.dtype)
        audio_embeds = torch.cat([audio_embeds[..., :1].expand(-1, -1, -1, before), audio_embeds], dim=-1)
        shares = functional.silu(self.weights)
        features = (audio_embeds * shares).sum(dim=1) / shares.sum(dim=1)  # [B, C, L]
        local, summary = self.encoder(features)
        return local[:, latents_before:], None if summary is None else summary[:, latents_before:]


class AudioModulation(nn.Module):
    """Shift and scale of a frame's tokens, made of the summary of its sound."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, summary: Tensor) -> Tensor:
        """[B, T, 1, D] to [B, T, 2, D], shift before scale."""
        out: Tensor = self.linear(functional.silu(summary.squeeze(2))).unflatten(-1, (2, -1))
        return out


@dataclass(frozen=True)
class VideoTokens:
    """Which of a clip's tokens a sequence holds: all `num_frames * per_frame`, or those `kept` [B, K]; then `num_conditions` others."""

    num_frames: int
    per_frame: int
    num_conditions: int
    kept: Tensor | None = None

    def take(self, indices: Tensor) -> VideoTokens:
        """The same for a subset of the sequence, [B, K + num_conditions], which ends with every condition token.

        The video's tokens may come in any order. A subset of a subset may be taken.
        """
        kept = indices[:, : indices.shape[1] - self.num_conditions]
        return replace(self, kept=kept if self.kept is None else self.kept.gather(1, kept))

    def by_frame(self, tokens: Tensor) -> Tensor:
        """The video's tokens [B, K, D] on the full grid [B, T, P, D], zero where none was kept."""
        if self.kept is not None:
            full = tokens.new_zeros(tokens.shape[0], self.num_frames * self.per_frame, tokens.shape[2])
            tokens = full.scatter(1, self.kept[..., None].expand_as(tokens), tokens)
        return torch.unflatten(tokens, 1, (self.num_frames, self.per_frame))

    def in_sequence(self, grid: Tensor) -> Tensor:
        """The inverse: [B, T, P, D] to the tokens that the sequence holds, [B, K, D]."""
        tokens = grid.flatten(1, 2)
        if self.kept is None:
            return tokens
        return tokens.gather(1, self.kept[..., None].expand(-1, -1, tokens.shape[2]))


class AudioInjection(WanAttention):  # type: ignore[misc]
    """Let the video's tokens listen to the sound of their own latent frame; condition tokens pass unchanged.

    It is the attention itself and no module around it, because checkpoints name its projections directly.
    """

    def __init__(self, dim: int, num_heads: int, eps: float, adaptive: bool) -> None:
        head_dim = dim // num_heads
        super().__init__(dim, num_heads, head_dim, eps, cross_attention_dim_head=head_dim, processor=WanAttnProcessor())
        self.norm = FP32LayerNorm(dim, _ADAPTIVE_EPS if adaptive else _PLAIN_EPS, elementwise_affine=False)

    def forward(self, hidden_states: Tensor, audio: Tensor, modulation: Tensor | None, video_tokens: VideoTokens) -> Tensor:
        """Tokens [B, S, D], sound [B, T, 5, D] and modulation [B, T, 2, D] to tokens [B, S, D].

        The attention runs frame by frame on the full grid, so every attention backend can do it without a mask. Of a
        clip with kept tokens only, the rest of the grid is zeros that are computed and thrown away.
        """
        num_video = hidden_states.shape[1] - video_tokens.num_conditions
        video, conditions = hidden_states[:, :num_video], hidden_states[:, num_video:]
        normed = self.norm(video_tokens.by_frame(video).float())  # [B, T, P, D]
        if modulation is not None:
            shift, scale = modulation[:, :, :1], modulation[:, :, 1:]
            normed = normed * (1 + scale) + shift
        heard = super().forward(normed.type_as(video).flatten(0, 1), audio.flatten(0, 1))  # [B * T, P, D]
        video = video + video_tokens.in_sequence(heard.unflatten(0, (-1, video_tokens.num_frames)))
        return torch.cat([video, conditions], dim=1)


class AudioInjector(nn.Module):
    """The injections by number, and beside each what makes its modulation; the network calls them one by one."""

    def __init__(self, dim: int, num_heads: int, num_injections: int, eps: float, adaptive: bool) -> None:
        super().__init__()
        self.injector = nn.ModuleList([AudioInjection(dim, num_heads, eps, adaptive) for _ in range(num_injections)])
        self.injector_adain_layers = nn.ModuleList([AudioModulation(dim) for _ in range(num_injections)]) if adaptive else None

    def modulation(self, number: int, summary: Tensor | None) -> Tensor | None:
        """Shift and scale [B, T, 2, D] for one injection, or None where sound does not modulate."""
        if self.injector_adain_layers is None:
            return None
        modulation: Tensor = self.injector_adain_layers[number](summary)
        return modulation

"""The `[model]` table of the Wan S2V family, and the checkpoint that it knows by a short name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from pydantic import Field

from tunesmith import ModelSource, PipelineSettings

VariantName: TypeAlias = Literal["s2v-14b-2.2"]

VARIANTS: Mapping[str, str] = {"s2v-14b-2.2": "tolgacangoz/Wan2.2-S2V-14B-Diffusers"}
"""Short name to Hub id."""


class WanS2VSettings(PipelineSettings):
    """`[model]` with `family = "wan_s2v"`: which checkpoint, how its encoders run, and what training leaves out at times."""

    checkpoints = VARIANTS
    variant: VariantName | None = None
    """A published checkpoint by its short name; give this or `path`."""
    audio_encoder: ModelSource | None = None
    """Local folder or Hub id of another wav2vec2 with its feature extractor, as a pipeline or by itself; it always runs in fp32."""
    motion: float = Field(0.0, ge=0, le=1)
    """Share of steps in which the 73 frames before the clips are given, as when a long video goes on; 0 never encodes them.

    A step whose clips do not all have so many frames before their window, or are smaller than 64 pixels, goes without.
    """
    audio_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of samples that are trained without their sound, so that guidance can steer away from that."""
    allow_unsafe_quantisation: bool = False
    """Let the frozen weights be kept in NF4 or INT4, although the quality of this checkpoint collapses in them."""

    def elsewhere(self) -> dict[str, str | None]:
        """The audio encoder and its feature extractor may come from another checkpoint, too."""
        return {**super().elsewhere(), "audio_encoder": self.audio_encoder, "audio_processor": self.audio_encoder}

    def dtypes(self, device: torch.device) -> dict[str, torch.dtype]:
        """The precision of each encoder: features of sound are made in fp32, as those that the checkpoint was trained with."""
        return {**super().dtypes(device), "audio_encoder": torch.float32}

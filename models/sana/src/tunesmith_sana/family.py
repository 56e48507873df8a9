"""Facts about one Sana checkpoint, answered from its configurations alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers import SanaTransformer2DModel
from torch import nn
from transformers import AutoTokenizer

from tunesmith import Family, FamilyDefaults, InputError, Modality, TokenGrid, local_tokenizer

from .facts import Facts, pipeline_default
from .prompts import caption_limit, count_tokens
from .settings import VARIANTS
from .tiny import write_tiny

SAMPLING_MULTIPLE = 32
"""`SanaPipeline` samples in sizes that are multiples of this, whatever the autoencoder."""


class SanaFamily(Family):
    """Shapes, names and rules of one Sana checkpoint."""

    name = "sana"
    modality = Modality.IMAGE
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")
    variants = VARIANTS
    refuses = MappingProxyType({})

    def __init__(self, facts: Facts, instruction: Sequence[str] | None = None, *, text_from_elsewhere: bool = False) -> None:
        self.facts = facts
        self.instruction = instruction
        self.text_from_elsewhere = text_from_elsewhere
        self.caption_tokens = caption_limit(instruction)
        self.scale = 2 ** (len(facts.vae["encoder_block_out_channels"]) - 1)
        """Pixels along an edge of what one latent stands for."""
        self.patch: int = facts.transformer["patch_size"]
        self.channels: int = facts.transformer["in_channels"]
        self.alignment = self.scale * self.patch
        edge = self.scale * facts.transformer["sample_size"]
        self.defaults = FamilyDefaults(
            size=(edge, edge),
            frames=1,
            fps=1.0,
            guidance=pipeline_default("guidance_scale"),
            sampling_steps=pipeline_default("num_inference_steps"),
            aligned_block=facts.transformer["num_layers"] // 2,
        )
        shift = facts.scheduler.get("flow_shift", facts.scheduler.get("shift"))
        self.noise_shift = None if shift is None else float(shift)
        self.timestep_scale = 1000.0 * facts.transformer["timestep_scale"]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """The shape of one sample's latents: (channels, height, width)."""
        return (self.channels, height // self.scale, width // self.scale)

    def token_grid(self, frames: int, height: int, width: int) -> TokenGrid:
        """The token grid for pixels of this size."""
        return TokenGrid(1, height // self.alignment, width // self.alignment)

    def count_tokens(self, captions: Sequence[str]) -> list[int] | None:
        """How many tokens the pipeline makes of each caption; None where the tokenizer is not on this machine."""
        folder = local_tokenizer(self.facts.text_origin, or_root=self.text_from_elsewhere)
        return None if folder is None else count_tokens(AutoTokenizer.from_pretrained(folder), captions, self.instruction)

    def on_meta(self) -> nn.Module:
        """The transformer on the meta device."""
        with torch.device("meta"):
            model: nn.Module = SanaTransformer2DModel.from_config(dict(self.facts.transformer))
        return model

    @classmethod
    def tiny(cls, folder: Path, seed: int = 0) -> Path:
        """Write a random Sana of about 0.1 M parameters (8x autoencoder, 64 pixels) below `folder`; return it."""
        return write_tiny(folder, seed)


def check_sampling_size(width: int, height: int) -> None:
    """InputError with the nearest sizes if `SanaPipeline` cannot sample at this one."""
    if width % SAMPLING_MULTIPLE or height % SAMPLING_MULTIPLE:
        near = "x".join(str(max(round(edge / SAMPLING_MULTIPLE), 1) * SAMPLING_MULTIPLE) for edge in (width, height))
        raise InputError(
            f"a validation size of {width}x{height} cannot be sampled: sana paints in multiples of {SAMPLING_MULTIPLE}; use {near}"
        )

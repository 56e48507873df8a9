"""A loaded Sana: how texts are encoded, and what its blocks are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith import GridConvolution, GridLayout, PipelineModel, SampleRequest

from .family import SanaFamily


class SanaModel(PipelineModel):
    """One part of a Sana: `vae` and `text_encoder` to encode, the transformer to train, or `vae` to decode."""

    family: SanaFamily

    def encode_texts(self, texts: list[str], negative: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """Embeddings [B, 300, D] and mask [B, 300]; the instruction is put before all but negative ones."""
        pipeline = self.build(tokenizer=self.tools.get("tokenizer"), text_encoder=self.encoder("text_encoder"))
        instruction = [self.family.instruction] if self.family.instruction and not negative else None
        embeds, mask, *_ = pipeline.encode_prompt(texts, False, device=device, complex_human_instruction=instruction)
        return embeds, mask

    def sampling_arguments(self, request: SampleRequest, device: torch.device) -> dict[str, Any]:
        """What every pipeline is given; sizes are sampled as they are."""
        return {**super().sampling_arguments(request, device), "use_resolution_binning": False}

    def recipe(self, pipeline: Any, request: SampleRequest) -> dict[str, Any]:
        """The instruction beside what every recipe tells."""
        return {**super().recipe(pipeline, request), "complex_human_instruction": self.family.instruction or None}

    def describe(self, block: Any) -> dict[str, Any]:
        """Attention to tokens and to the prompt, and a feed-forward with a convolution on the grid."""
        return {
            "grid": ("height", "width"),
            "convolutions": (GridConvolution(block.ff.conv_depth, GridLayout.IMAGES),),
            "attention": (block.attn1, block.attn2),
            "feed_forward": (block.ff,),
        }

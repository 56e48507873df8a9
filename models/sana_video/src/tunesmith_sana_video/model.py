"""A loaded Sana Video: how texts are encoded, and what its blocks are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith import GridConvolution, GridLayout, PipelineModel, SampleRequest, take_rows

from .family import SanaVideoFamily


class SanaVideoModel(PipelineModel):
    """One part of a Sana Video: `vae` and `text_encoder` to encode, the transformer to train, or `vae` to decode."""

    family: SanaVideoFamily
    frames_as = "frames"

    def encode_texts(self, texts: list[str], negative: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """Embeddings [B, 300, D] and mask [B, 300]; instruction and motion score are those of all but negative ones."""
        pipeline = self.build(tokenizer=self.tools.get("tokenizer"), text_encoder=self.encoder("text_encoder"))
        instruction = [self.family.instruction] if self.family.instruction and not negative else None
        read = texts if negative else [self.family.as_read(text) for text in texts]
        embeds, mask, *_ = pipeline.encode_prompt(read, False, device=device, complex_human_instruction=instruction)
        return embeds, mask

    def sampling_arguments(self, request: SampleRequest, device: torch.device) -> dict[str, Any]:
        """What every pipeline is given; sizes are sampled as they are."""
        return {**super().sampling_arguments(request, device), "use_resolution_binning": False}

    def recipe(self, pipeline: Any, request: SampleRequest) -> dict[str, Any]:
        """Instruction and motion score beside what every recipe tells."""
        own = {"complex_human_instruction": self.family.instruction or None, "motion_score": self.family.settings.motion_score}
        return {**super().recipe(pipeline, request), **own}

    def describe(self, block: Any) -> dict[str, Any]:
        """Attention to tokens and to the prompt, and a feed-forward that convolves each frame and then along the frames."""
        convolutions = GridConvolution(block.ff.conv_depth, GridLayout.IMAGES), GridConvolution(block.ff.conv_temp, GridLayout.COLUMNS)
        return {
            "per_token": {"timestep": take_rows, "rotary_emb": take_rows},
            "grid": ("frames", "height", "width"),
            "convolutions": convolutions,
            "attention": (block.attn1, block.attn2),
            "feed_forward": (block.ff,),
        }

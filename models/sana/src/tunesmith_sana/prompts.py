"""Captions to embeddings, by the pipeline's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import SanaPipeline
from torch import Tensor

from .facts import pipeline_default

MAX_TOKENS: int = pipeline_default("max_sequence_length")
"""What the transformer sees of a prompt: the first hidden state and the last 299."""


def instruction_lines(setting: bool | str) -> list[str] | None:
    """The complex human instruction that a setting asks for: the pipeline's own, the user's, or none."""
    if isinstance(setting, str):
        return [setting] if setting else None
    lines: list[str] = pipeline_default("complex_human_instruction")
    return list(lines) if setting else None


def caption_limit(instruction: Sequence[str] | None) -> int:
    """How many tokens of a caption reach the transformer, as `count_tokens` counts them.

    Behind an instruction, whose last token is one of the 300, the pipeline cuts off what exceeds 298; otherwise the first is <bos>.
    """
    return MAX_TOKENS - 2 if instruction else MAX_TOKENS


def count_tokens(tokenizer: Any, captions: Sequence[str], instruction: Sequence[str] | None) -> list[int]:
    """How many tokens the pipeline makes of each caption; without an instruction <bos> counts too."""
    if not captions:
        return []
    before = "\n".join(instruction or ())
    pipeline = SanaPipeline(tokenizer, text_encoder=None, vae=None, transformer=None, scheduler=None)
    texts: list[str] = pipeline._text_preprocessing(list(captions))
    taken = len(tokenizer.encode(before)) if before else 0
    return [len(tokens) - taken for tokens in tokenizer([before + text for text in texts]).input_ids]


def text_encoder_of(pipeline: SanaPipeline, instruction: Sequence[str] | None, device: torch.device) -> Callable[[list[str], bool], Any]:
    """What embeds texts as `SanaPipeline` does, padded to 300 tokens: `instruction` is put before all but negative ones."""

    def encode(texts: list[str], negative: bool) -> tuple[Tensor, Tensor]:
        embeds, mask, _, _ = pipeline.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=device,
            max_sequence_length=MAX_TOKENS,
            complex_human_instruction=None if negative else instruction,
        )  # [B, 300, D], [B, 300]
        return embeds, mask

    return encode

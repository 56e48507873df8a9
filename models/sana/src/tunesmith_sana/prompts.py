"""Captions to embeddings, by the pipeline's own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SanaPipeline
from torch import Tensor

from tunesmith import Caption, InputError, Ragged

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


def encode_captions(pipeline: SanaPipeline, captions: Sequence[Caption], instruction: Sequence[str] | None, device: torch.device) -> Ragged:
    """Embed captions as `SanaPipeline` does and cut the padding off: one [tokens, D] a caption, at most 300 tokens.

    `instruction` is put before all but negative captions. Raises InputError if a text has no token at all, which the
    pipeline would turn into attention to nothing but padding.
    """
    rows: dict[int, Tensor] = {}
    for negative in (False, True):
        chosen = [index for index, caption in enumerate(captions) if caption.negative is negative]
        if not chosen:
            continue
        embeds, mask, _, _ = pipeline.encode_prompt(
            [captions[index].text for index in chosen],
            do_classifier_free_guidance=False,
            device=device,
            max_sequence_length=MAX_TOKENS,
            complex_human_instruction=None if negative else instruction,
        )  # [B, 300, D], [B, 300]
        for index, row, length in zip(chosen, embeds, _lengths(mask), strict=True):
            if not length:
                raise InputError(
                    f"the tokenizer makes no token of {captions[index].text!r}; Sana needs one that begins with <bos> (add_bos_token)"
                )
            rows[index] = row[:length].clone()
    return Ragged([rows[index] for index in range(len(captions))])


def _lengths(mask: Tensor) -> list[int]:
    """How many tokens of each row are real; RuntimeError if they do not come first."""
    lengths = mask.sum(dim=1)
    expected = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    if not torch.equal(mask.bool(), expected):
        raise RuntimeError("the tokenizer pads in front of or within a prompt; prompt embeddings are kept as a prefix of real tokens")
    return [int(length) for length in lengths]

"""Random twins of checkpoints: what the families' own twins have in common."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from ..quiet import without_progress_bars

CHARACTERS = ("\u2581", *string.ascii_letters, *string.digits, *string.punctuation)
"""Space, and every other character that can be printed: the tokens of a twin."""
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def write_twin(folder: Path, seed: int, build: Callable[[], Any]) -> Path:
    """Write the diffusers pipeline that `build` makes with random weights of this seed, and return the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        pipeline = build()
    with without_progress_bars():
        pipeline.save_pretrained(folder)
    return folder


def gemma_twin(width: int) -> tuple[GemmaTokenizer, Gemma2Model]:
    """A tokenizer with a token for each character, and bytes for any other, and a random Gemma 2 of two layers for it."""
    pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    tokenizer = GemmaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], add_bos_token=True)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        query_pre_attn_scalar=width // 2,
        max_position_embeddings=2048,  # the instructions that are put before prompts alone have some 1,400 characters
        pad_token_id=_SPECIAL.index("<pad>"),
        eos_token_id=_SPECIAL.index("<eos>"),
        bos_token_id=_SPECIAL.index("<bos>"),
    )
    model = Gemma2Model(config)
    with torch.no_grad():
        model.embed_tokens.weight.normal_(std=1.0)  # else every prompt looks the same
    return tokenizer, model.eval()

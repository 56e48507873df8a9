"""Texts to embeddings: cleaned, encoded by UMT5, and padded with zeros behind it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import ftfy
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor

MAX_TOKENS = 512
"""Positions of text that the transformer looks at; it has no mask, so those without a token count too."""

NEGATIVE_PROMPT = (
    "画面模糊 最差质量 画面模糊 细节模糊不清 情绪激动剧烈 手快速抖动 字幕 丑陋的 残缺的 多余的手指 画得不好的手部 "
    "画得不好的脸部 畸形的 毁容的 形态畸形的肢体 手指融合 静止不动的画面 杂乱的背景 三条腿 背景人很多 倒着走"
).replace(" ", "\uff0c")
"""What Wan steers a speaking person away from where nothing else is asked for."""


def clean(text: str) -> str:
    """The text as Wan's pipelines encode it: mended (ftfy), HTML entities resolved twice, white space collapsed."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def encode_texts(tokenizer: Any, text_encoder: Any, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> tuple[Tensor, Tensor]:
    """Embeddings [B, max_tokens, D] of texts, zeros behind their tokens, and the mask [B, max_tokens] of those.

    Texts are cleaned first; what exceeds `max_tokens`, one of which ends the text, is cut off.
    """
    tokens = tokenizer(
        [clean(text) for text in texts],
        padding="max_length",
        max_length=max_tokens,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    device = get_module_execution_device(text_encoder)
    mask = tokens.attention_mask.to(device)
    embeds: Tensor = text_encoder(tokens.input_ids.to(device), mask).last_hidden_state
    return torch.where(mask[..., None].bool(), embeds, 0), mask

"""Parts of a pipeline without weights and files: networks of their configurations, and a tokenizer that tells lengths alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

CHARACTERS_PER_TOKEN = 4
"""What a token of English stands for, about."""


class Tokenizer:
    """Makes of every text as many tokens as are asked for, and of what is not padded about as many as it would have."""

    padding_side = "right"

    def __call__(self, texts: Sequence[str], *, max_length: int, **_: Any) -> SimpleNamespace:
        """Ids and mask, [B, max_length]."""
        ids = torch.ones(len(texts), max_length, dtype=torch.int64)
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return [1] * (1 + len(text) // CHARACTERS_PER_TOKEN)


def made(kind: type[Any], config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A frozen network of diffusers or transformers with this configuration, and values that nobody reads."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        is_transformer = issubclass(kind, PreTrainedModel)
        network: nn.Module = kind(kind.config_class.from_dict(dict(config))) if is_transformer else kind.from_config(dict(config))
    finally:
        torch.set_default_dtype(before)
    return network.requires_grad_(False).eval()

"""Linear attention with rotary positions whose sums over tokens stay in full precision under autocast."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SanaVideoTransformer3DModel
from diffusers.models.transformers.transformer_sana_video import SanaLinearAttnProcessor3_0
from torch import Tensor
from torch.nn import functional


class FullPrecisionLinearAttention:
    """What diffusers' own processor computes, with the products of keys, values and queries in fp32 under autocast too.

    That processor asks for fp32 as well, but autocast turns its products back to half precision, where a sum over the
    tokens of a clip leaves the range of fp16 and loses most digits of bf16. Source: section 3.1 of SANA-Video (2509.24695).
    """

    def __init__(self) -> None:
        self.without_autocast = SanaLinearAttnProcessor3_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend over tokens [B, T, D]; `rotary_emb` are cosines and sines, [1 or B, T, 1, d] each."""
        device = hidden_states.device.type
        if not torch.is_autocast_enabled(device) or rotary_emb is None:
            plain: Tensor = self.without_autocast(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return plain
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        with torch.autocast(device, enabled=False):
            query, key, value = (states.float().unflatten(2, (attn.heads, -1)) for states in (query, key, value))  # [B, T, heads, d]
            summed = _attend(query, key, value, rotary_emb)
        attended: Tensor = attn.to_out[1](attn.to_out[0](summed.flatten(2).to(hidden_states.dtype)))
        return attended


def _attend(query: Tensor, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Linear attention with a ReLU kernel, rotated in the sum and not in its divisor; [B, T, heads, d], and so is the result."""
    query, key = functional.relu(query), functional.relu(key)
    turned_query, turned_key = _rotate(query, *rotary), _rotate(key, *rotary)
    divisor = (query * key.sum(dim=1, keepdim=True)).sum(dim=-1, keepdim=True) + 1e-15  # [B, T, heads, 1]
    memory = torch.einsum("bthv,bthk->bhvk", value, turned_key)
    return torch.einsum("bhvk,bthk->bthv", memory, turned_query) / divisor


def _rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels; both tables hold every number twice."""
    even, odd = states[..., 0::2], states[..., 1::2]
    cosine, sine = cosines[..., 0::2].float(), sines[..., 1::2].float()
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


def keep_full_precision(transformer: SanaVideoTransformer3DModel) -> None:
    """Give every block of a Sana Video transformer linear attention that is safe under fp16 and bf16 autocast."""
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(FullPrecisionLinearAttention())

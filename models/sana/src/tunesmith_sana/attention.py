"""Linear attention whose sums over tokens stay in full precision under autocast."""

from __future__ import annotations

import torch
from diffusers import SanaTransformer2DModel
from diffusers.models.attention_processor import Attention, SanaLinearAttnProcessor2_0
from torch import Tensor
from torch.nn import functional

_HALF_MAX = torch.finfo(torch.float16).max


class FullPrecisionLinearAttention:
    """What diffusers' own processor computes, with the products of keys, values and queries in fp32 under autocast too.

    That processor asks for fp32 as well, but autocast turns its products back to half precision, where a sum over a
    thousand tokens leaves the range of fp16. Source: section 2.2 of Sana (2410.10629).
    """

    def __init__(self) -> None:
        self.without_autocast = SanaLinearAttnProcessor2_0()

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Attend over tokens [B, T, D] to themselves or to `encoder_hidden_states`; there is no masked linear attention."""
        device = hidden_states.device.type
        if not torch.is_autocast_enabled(device):
            plain: Tensor = self.without_autocast(attn, hidden_states, encoder_hidden_states, attention_mask)
            return plain
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        with torch.autocast(device, enabled=False):
            summed = _attend(*(states.float().transpose(1, 2).unflatten(1, (attn.heads, -1)) for states in (query, key, value)))
        tokens = summed.flatten(1, 2).transpose(1, 2).to(hidden_states.dtype)
        attended: Tensor = attn.to_out[1](attn.to_out[0](tokens))
        return attended.clip(-_HALF_MAX, _HALF_MAX) if attended.dtype == torch.float16 else attended


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention with a ReLU kernel; all are [B, heads, d, T], and so is the result."""
    query, key = functional.relu(query), functional.relu(key)
    value = functional.pad(value, (0, 0, 0, 1), value=1.0)  # a row of ones sums the kernel: the divisor below
    summed = (value @ key.transpose(2, 3)) @ query  # [B, heads, d + 1, T]
    return summed[:, :, :-1] / (summed[:, :, -1:] + 1e-15)


def keep_full_precision(transformer: SanaTransformer2DModel) -> None:
    """Give every block of a Sana transformer linear attention that is safe under fp16 and bf16 autocast."""
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(FullPrecisionLinearAttention())

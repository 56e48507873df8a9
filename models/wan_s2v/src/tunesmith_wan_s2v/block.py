"""One block of the network: a Wan block whose modulation differs between video tokens and condition tokens."""

from __future__ import annotations

from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, cat, dtype, split

from .rotary import RotaryPair


class WanS2VTransformerBlock(WanTransformerBlock):  # type: ignore[misc]
    """Self-attention over all tokens, text attention, feed-forward; the parts are those of every Wan block."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: RotaryPair,
        num_conditions: int,
    ) -> Tensor:
        """Tokens [B, S, D], text [B, L, D], modulation [B, 6, 2, D] and rotary pair [1 or B, S, 1, d] to tokens [B, S, D].

        The last `num_conditions` tokens are modulated by the second row of `temb`, all before them by the first. It counts
        from the end, so that it holds for any subset of tokens that keeps the conditions; only `rotary_emb` is per token.
        """
        modulation = self.scale_shift_table[:, :, None] + temb.float()
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unbind(dim=1)  # each [B, 2, D]

        normed = _modulated(self.norm1(hidden_states.float()), scale, shift, num_conditions, hidden_states.dtype)
        hidden_states = _added(hidden_states, self.attn1(normed, None, None, rotary_emb), gate, num_conditions)

        normed = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.attn2(normed, encoder_hidden_states, None, None)

        normed = _modulated(self.norm3(hidden_states.float()), ffn_scale, ffn_shift, num_conditions, hidden_states.dtype)
        return _added(hidden_states, self.ffn(normed), ffn_gate, num_conditions)


def _modulated(tokens: Tensor, scale: Tensor, shift: Tensor, num_conditions: int, kind: dtype) -> Tensor:
    """tokens * (1 + scale) + shift, computed in fp32; scale and shift are [B, 2, D]."""
    parts = _video_and_conditions(tokens, num_conditions)
    return cat([(part * (1 + scale[:, i : i + 1]) + shift[:, i : i + 1]).to(kind) for i, part in enumerate(parts)], dim=1)


def _added(tokens: Tensor, update: Tensor, gate: Tensor, num_conditions: int) -> Tensor:
    """tokens + gate * update, computed in fp32; gate is [B, 2, D]."""
    pairs = zip(_video_and_conditions(tokens, num_conditions), _video_and_conditions(update, num_conditions), strict=True)
    return cat([(old.float() + new.float() * gate[:, i : i + 1]).type_as(tokens) for i, (old, new) in enumerate(pairs)], dim=1)


def _video_and_conditions(tokens: Tensor, num_conditions: int) -> tuple[Tensor, ...]:
    return split(tokens, [tokens.shape[1] - num_conditions, num_conditions], dim=1)

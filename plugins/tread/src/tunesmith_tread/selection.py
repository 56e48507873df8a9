"""Which tokens are kept: how many, and by what."""

from __future__ import annotations

import torch
from torch import Tensor


def num_kept(tokens: int, ratio: float, forced: int = 0) -> int:
    """How many tokens of each sample go through where `ratio` of them bypass, halves rounded to even; at least those that must."""
    return max(tokens - round(tokens * ratio), forced)


def importance(hidden: Tensor) -> Tensor:
    """The L1 norm of tokens [B, S, D] from 0, the sample's least, to 1, its largest: [B, S] in fp32."""
    norm = hidden.float().abs().sum(dim=-1)
    least, most = norm.aminmax(dim=1, keepdim=True)
    return (norm - least) / (most - least).clamp(min=torch.finfo(norm.dtype).tiny)


def choose(score: Tensor, ratio: float, forced: Tensor | None = None) -> Tensor:
    """The tokens of highest score, [B, K], sorted; `score` is [B, S] and at most 1, `forced` marks tokens that are kept whatever theirs.

    Every sample keeps as many: what `ratio` leaves, or the most that must be kept of any of them, which waits for the device.
    """
    if forced is not None:
        score = score.masked_fill(forced, 2.0)
    kept = num_kept(score.shape[1], ratio, 0 if forced is None else int(forced.sum(dim=1).max()))
    return score.topk(max(kept, 1), dim=1, sorted=False).indices.sort(dim=1).values  # no block can do with no token

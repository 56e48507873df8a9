"""Captions to embeddings, where a pipeline pads them: grouped for its encoder, and kept without the padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .batch import Caption, Ragged
from .errors import InputError

Encoder: TypeAlias = Callable[[list[str], bool], tuple[Tensor, Tensor]]
"""(texts, whether they are negative) -> embeddings [B, T, D] and mask [B, T]; padding comes last."""


def encode_captions(encode: Encoder, captions: Sequence[Caption]) -> Ragged:
    """Embed captions with an encoder of padded texts, and cut the padding off: one [tokens, D] a caption.

    Negative captions are encoded apart from the others. Raises InputError if a text has no token at all, which would
    become attention to nothing but padding; RuntimeError if padding does not come last.
    """
    rows: dict[int, Tensor] = {}
    for negative in (False, True):
        chosen = [index for index, caption in enumerate(captions) if caption.negative is negative]
        if not chosen:
            continue
        embeds, mask = encode([captions[index].text for index in chosen], negative)
        for index, row, length in zip(chosen, embeds, _lengths(mask), strict=True):
            if not length:
                raise InputError(
                    f"the tokenizer makes no token of {captions[index].text!r}; "
                    f"the text encoder needs one, such as <bos> (add_bos_token) or an end of the text"
                )
            rows[index] = row[:length].clone()
    return Ragged([rows[index] for index in range(len(captions))])


def _lengths(mask: Tensor) -> list[int]:
    """How many tokens of each row are real; RuntimeError if they do not come first."""
    if isinstance(mask, FakeTensor):  # of a rehearsal, which is about as many as there may be
        return [mask.shape[1]] * mask.shape[0]
    lengths = mask.sum(dim=1)
    expected = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    if not torch.equal(mask.bool(), expected):
        raise RuntimeError("the tokenizer pads in front of or within a prompt; prompt embeddings are kept as a prefix of real tokens")
    return [int(length) for length in lengths]

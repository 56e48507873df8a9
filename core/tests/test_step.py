"""A step marks tokens that must not be dropped; whoever marks some keeps what others have marked."""

from __future__ import annotations

import torch

from tunesmith import Batch, Step

EMPTY = torch.zeros(2)


def a_step() -> Step:
    return Step(0, 0, 0, "train", Batch(), EMPTY, EMPTY, EMPTY, EMPTY)


def test_tokens_marked_by_several_are_all_kept_whatever_their_order():
    first, second = torch.tensor([[True, False, False], [False, False, False]]), torch.tensor([[False, False, True], [True, False, False]])
    one, other = a_step(), a_step()
    assert one.keep is None
    one.keep_tokens(first)
    one.keep_tokens(second)
    other.keep_tokens(second)
    other.keep_tokens(first)
    assert one.keep is not None
    assert one.keep.tolist() == [[True, False, True], [True, False, False]]
    assert other.keep is not None
    assert torch.equal(one.keep, other.keep)
    assert first.tolist() == [[True, False, False], [False, False, False]]  # the caller's mask is not written into

"""Bytes of live tensors: what is made counts once, whoever looks at it, until it is gone."""

from __future__ import annotations

import torch

from tunesmith.live import LiveTensors, num_bytes


def test_a_storage_counts_once_for_as_long_as_a_view_of_it_lives() -> None:
    with LiveTensors() as live:
        whole = torch.zeros(100)
        row = whole[:10].view(2, 5)
        row += 1
        assert live.live == 400
        del whole
        assert live.live == 400
        del row
        assert (live.live, live.peak) == (0, 400)


def test_the_peak_has_what_backward_allocates_and_is_counted_anew_from_any_moment() -> None:
    weight = torch.ones(50, requires_grad=True)
    with LiveTensors() as live:
        loss = (weight * weight).sum()
        held = live.live
        live.since_now()
        loss.backward()
        assert live.peak >= held + 2 * 200  # the gradients of both factors
        assert weight.grad is not None
        assert num_bytes([weight.grad, weight.grad[:3]]) == 200


def test_what_was_there_before_counts_when_it_is_told_of() -> None:
    there = torch.zeros(10)
    with LiveTensors() as live:
        live.count({"one": there, "again": [there.view(2, 5)]})
        assert live.live == 40
        del there
        assert live.live == 0

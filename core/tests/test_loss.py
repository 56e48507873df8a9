"""Contributions to the loss commute, to the bit."""

import itertools

import pytest
import torch

from tunesmith import Loss


def test_total_is_the_mean_over_elements_times_weights_plus_terms():
    elements, weight, other = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4), torch.rand(2, 1, 1, 1)
    loss = Loss(elements)
    loss.weigh("mask", weight)
    loss.weigh("snr", other)
    loss.add("alignment", torch.tensor(-0.25))
    expected = (elements.double() * weight.double() * other.double()).mean() - 0.25
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_order_of_contributions_changes_no_bit():
    elements = torch.randn(2, 3, 5, 5)
    weights = {name: torch.rand(2, 1, 5, 5) for name in "abc"}
    terms = {name: torch.randn(()) for name in "xyz"}
    totals = set()
    for weight_order, term_order in zip(itertools.permutations("abc"), itertools.permutations("xyz"), strict=True):
        loss = Loss(elements)
        for name in weight_order:
            loss.weigh(name, weights[name])
        for name in term_order:
            loss.add(name, terms[name])
        totals.add(loss.total.item())
    assert len(totals) == 1


def test_a_name_is_used_once():
    loss = Loss(torch.zeros(1))
    loss.weigh("mask", torch.ones(1))
    loss.add("crepa", torch.zeros(()))
    with pytest.raises(ValueError, match="weight named 'mask'"):
        loss.weigh("mask", torch.ones(1))
    with pytest.raises(ValueError, match="term named 'crepa'"):
        loss.add("crepa", torch.zeros(()))


def test_a_term_is_a_scalar():
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        Loss(torch.zeros(1)).add("alignment", torch.zeros(2))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 3, 2), (2, 1, 3, 3)])
def test_a_weight_broadcasts_to_the_elements_and_nothing_else(shape):
    with pytest.raises(ValueError, match="does not broadcast to the elements"):
        Loss(torch.ones(4, 1, 3, 3)).weigh("mask", torch.ones(shape))

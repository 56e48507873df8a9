"""How many tokens are kept, which, and where they go, against the numbers of two reference implementations."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tunesmith import TokenGrid, TrunkModule
from tunesmith_tread import Routed, bypass, choose, importance, num_kept

GOLDEN = Path(__file__).parent / "golden"
FACTS: dict[str, Any] = json.loads((GOLDEN / "tread.json").read_text())
TENSORS = load_file(GOLDEN / "tread.safetensors")


class Recorder(nn.Module):
    """Gives what it is told to give, and remembers what it was given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.given = hidden_states
        return self.output


@pytest.mark.parametrize("case", FACTS["cases"])
def test_tokens_go_through_and_come_back_where_the_reference_puts_them(case: str) -> None:
    tokens, permutation = TENSORS[f"{case}.in.x"].requires_grad_(), TENSORS[f"{case}.in.permutation"]
    kept = permutation[:, : FACTS["cases"][case]["keep"]]
    routed, module = Routed(TokenGrid(1, 1, tokens.shape[1]), lambda hidden: kept), Recorder(TENSORS[f"{case}.in.routed_output"])
    with bypass([TrunkModule("it", module, is_block=True)], lambda: routed):
        output = module(tokens)
    assert torch.equal(module.given, TENSORS[f"{case}.out.start_route"])
    assert torch.equal(output, TENSORS[f"{case}.out.end_route"])
    dropped = TENSORS[f"{case}.out.dropped_mask"]
    (through,) = torch.autograd.grad(module.given.sum(), tokens, retain_graph=True)
    (beside,) = torch.autograd.grad(output.sum(), tokens)
    assert torch.equal(through, (~dropped)[..., None].expand_as(tokens).float())
    assert torch.equal(beside, dropped[..., None].expand_as(tokens).float())


@pytest.mark.parametrize("budget", FACTS["budgets"], ids=lambda budget: f"{budget['S']}-{budget['ratio']}")
def test_the_number_of_kept_tokens_rounds_halves_to_even(budget: dict[str, Any]) -> None:
    assert num_kept(budget["S"], budget["ratio"]) == budget["keep_simpletuner"]


@pytest.mark.parametrize("case", FACTS["force_keep"], ids=lambda case: f"{case['S']}-{case['ratio']}")
def test_tokens_that_must_be_kept_are_and_all_samples_keep_as_many(case: dict[str, Any]) -> None:
    forced = torch.tensor(case["force_keep"], dtype=torch.bool)
    score = torch.rand(forced.shape, generator=torch.Generator().manual_seed(0))
    kept = choose(score, case["ratio"], forced)
    assert kept.shape == (len(forced), case["keep"])
    for row, must in zip(kept, forced, strict=True):
        assert row.tolist() == sorted(set(row.tolist()))
        assert set(must.nonzero().flatten().tolist()) <= set(row.tolist())


def test_importance_is_the_l1_norm_of_each_token_from_the_least_to_the_largest_of_its_sample() -> None:
    score = importance(TENSORS["importance.in.x"])
    torch.testing.assert_close(score, TENSORS["importance.out.score"], rtol=0, atol=1e-6)
    assert torch.equal(choose(score, 0.5), TENSORS["importance.out.keep_sorted_inverse_True"])  # the largest are kept
    assert torch.equal(choose(-score, 0.5), TENSORS["importance.out.keep_sorted_inverse_False"])


def test_tokens_that_are_all_alike_have_no_importance_and_one_token_is_always_kept() -> None:
    assert torch.equal(importance(torch.ones(2, 5, 3)), torch.zeros(2, 5))
    assert choose(torch.rand(3, 1), 0.9).tolist() == [[0], [0], [0]]


def test_tokens_that_bypass_take_the_precision_of_those_that_went_through() -> None:
    """As under autocast on a GPU, where the first block is given bf16 and gives fp32; a CPU's autocast would see to it by itself."""
    routed = Routed(TokenGrid(1, 1, 4), lambda hidden: torch.tensor([[1, 3]]))
    entry = TrunkModule("block", nn.Identity(), is_block=True)
    given = torch.arange(8.0).reshape(1, 4, 2).bfloat16()
    (entering,), _ = routed.narrow(entry, inspect.signature(lambda hidden_states: None), True, (given,), {})
    whole = routed.widen(entry, (), entering.float() / 3)
    assert whole.dtype is torch.float32
    assert torch.equal(whole[0], torch.tensor([[0, 1], [2 / 3, 1], [4, 5], [2, 7 / 3]]))

"""Updates within backward: the same as after it, and no more gradients at once than are needed."""

from __future__ import annotations

import io
import weakref

import pytest
import torch
from torch import Tensor, nn

from tunesmith.config.optimizers import optimizer_problems
from tunesmith.config.tables import OptimizerTable, RunTable
from tunesmith.engine import Engine, make_optimizer

KINDS = ("adamw", "sgd", "adafactor", "muon", "stableadamw", "lion_kahan", "adamw8bit", "adamwfp8", "adamw_schedulefree")
DEPTH = 6


class Network(nn.Module):
    """Layers of one width, of which one is used twice, and a weight that is not used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64, dtype=dtype) for _ in range(DEPTH))
        self.unused = nn.Parameter(torch.ones(64, 64, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, 64] to the same."""
        for layer in (*self.layers, self.layers[0]):
            hidden = torch.tanh(layer(hidden))
        return hidden


def table_of(kind: str, fused: bool, **settings: object) -> OptimizerTable:
    return OptimizerTable.model_validate({"type": kind, "lr": 1e-2, "clip_norm": False, "fused_backward_pass": fused, **settings})


def engine_for(table: OptimizerTable, dtype: torch.dtype = torch.float32) -> tuple[Network, Engine]:
    network = Network(dtype)
    engine = Engine(RunTable(steps=1, precision="no", device="cpu"))
    engine.prepare(network, make_optimizer(network.parameters(), table))
    return network, engine


def train(network: Network, engine: Engine, table: OptimizerTable, steps: range) -> list[float]:
    """Some steps; returns the norms of their gradients."""
    norms = []
    for step in steps:
        engine.set_rate(1 / (1 + step))
        inputs = torch.randn(2, 64, generator=torch.Generator().manual_seed(step)).to(network.unused.dtype)
        engine.backward(network(inputs).square().mean())
        norms.append(engine.clip(table).item())
        engine.update()
    return norms


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_optimizer_without_it_to_the_bit_and_goes_on_exactly(kind: str) -> None:
    dtype = torch.bfloat16 if "kahan" in kind else torch.float32
    plain_table, table = table_of(kind, fused=False), table_of(kind, fused=True)
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its updates, which takes longer than all of this
        plain, plain_engine = engine_for(plain_table, dtype)
        plain_norms = train(plain, plain_engine, plain_table, range(4))
        fused, engine = engine_for(table, dtype)
        norms = train(fused, engine, table, range(2))
        kept = io.BytesIO()
        torch.save((fused.state_dict(), engine.optimizer.state_dict()), kept)
        kept.seek(0)
        weights, state = torch.load(kept, weights_only=True)
        resumed, engine = engine_for(table, dtype)
        resumed.load_state_dict(weights)
        engine.load_optimizer(state, table)
        norms += train(resumed, engine, table, range(2, 4))
    assert norms == pytest.approx(plain_norms, rel=1e-6 if dtype is torch.float32 else 1e-2)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), resumed.parameters(), strict=True))
    with plain_engine.weights_to_use():
        used = [weight.clone() for weight in plain.parameters()]
    with engine.weights_to_use():
        assert all(map(torch.equal, used, resumed.parameters()))
    assert not any(map(torch.equal, plain.layers.parameters(), Network(dtype).layers.parameters()))


@pytest.mark.parametrize(("fused", "most"), [(False, 2 * DEPTH), (True, 2)])
def test_a_gradient_is_gone_before_that_of_the_layer_before_it_is_there(fused: bool, most: int) -> None:
    table = table_of("adamw", fused)
    network, alive, counts = Network(torch.float32), [], []

    def count(parameter: Tensor) -> None:
        assert parameter.grad is not None
        alive.append(weakref.ref(parameter.grad))
        counts.append(sum(one() is not None for one in alive))

    for parameter in network.layers.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    engine = Engine(RunTable(steps=1, precision="no", device="cpu"))
    engine.prepare(network, make_optimizer(network.parameters(), table))
    train(network, engine, table, range(1))
    assert len(counts) == 2 * DEPTH
    assert max(counts) <= most
    assert fused or max(counts) == most


def test_elements_are_clipped_one_gradient_after_the_other_and_the_norm_is_that_before() -> None:
    found = []
    for fused in (False, True):
        table = table_of("sgd", fused, clip_value=1e-4)
        network, engine = engine_for(table)
        found.append((train(network, engine, table, range(3)), [*network.parameters()]))
    (plain_norms, plain), (norms, weights) = found
    assert norms == pytest.approx(plain_norms, rel=1e-6)
    assert all(map(torch.equal, plain, weights))


def test_the_norm_is_of_the_gradients_of_one_backward() -> None:
    """A weight that had a gradient before and has none now does not count."""
    table = table_of("sgd", fused=True)
    network, engine = engine_for(table)
    engine.backward(next(network.layers.parameters()).sum() + network.unused.sum())
    assert engine.clip(table).item() == pytest.approx((2 * 64 * 64) ** 0.5)
    engine.backward(network.unused.sum())
    assert engine.clip(table).item() == pytest.approx(64)


def test_what_needs_all_gradients_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="add clip_norm = false, or a clip_value"):
        OptimizerTable.model_validate({"fused_backward_pass": True})
    assert OptimizerTable.model_validate({"fused_backward_pass": True, "clip_value": 0.1}).clip_norm is None
    (problem,) = optimizer_problems({"type": "prodigy", "fused_backward_pass": True})
    assert problem[0] == "fused_backward_pass"
    assert "finds one learning rate from the gradients of all weights" in problem[1]
    (problem,) = optimizer_problems({"type": "stableadamw", "gradient_release": True})
    assert problem == ("gradient_release", "'gradient_release' is written fused_backward_pass = true here")

"""Muon and AdamW as one optimizer, against the two of torch stepped by hand."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunesmith import InputError
from tunesmith.combined import tensors_kept
from tunesmith.config.optimizers import optimizer_problems
from tunesmith.config.tables import OptimizerTable, RunTable
from tunesmith.engine import Engine, make_optimizer, parameter_groups
from tunesmith.model import Trainable, TrunkModule
from tunesmith.muon import matrices


class Block(nn.Module):
    """A table of its own, matrices in layers, an embedding, a convolution, and what has one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 8))
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8, bias=False))
        self.places = nn.Embedding(4, 8)
        self.mix = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, 4, 8] to the same."""
        hidden = hidden * self.table[0] + self.table[1] + self.places.weight
        mixed: Tensor = self.layers(hidden) + self.mix(hidden.transpose(1, 2)).transpose(1, 2)
        return mixed


MATRICES = ["1.layers.0.weight", "1.layers.2.weight"]


def parts() -> tuple[Trainable, list[TrunkModule]]:
    """A denoiser of a first layer, a block and a last layer, and a plugin's projector."""
    torch.manual_seed(0)
    block = Block()
    denoiser = nn.Sequential(nn.Linear(8, 8), block, nn.Linear(8, 8))
    return Trainable(denoiser, nn.ModuleDict({"projector": nn.Linear(8, 8)})), [TrunkModule("1", block, is_block=True)]


def engine_for(table: OptimizerTable) -> tuple[Trainable, Engine]:
    trainable, trunk = parts()
    engine = Engine(RunTable(steps=1, precision="no", device="cpu"))
    engine.prepare(trainable, make_optimizer(parameter_groups(trainable, table, trunk), table))
    return trainable, engine


def loss_at(trainable: Trainable, step: int) -> Tensor:
    inputs = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(step))
    loss: Tensor = (trainable(inputs) + trainable.extra["projector"](inputs)).square().mean()
    return loss


def one_step(trainable: Trainable, engine: Engine, step: int) -> None:
    engine.set_rate(1 / (1 + step))
    engine.backward(loss_at(trainable, step))
    engine.update()


def test_muon_takes_the_matrices_of_layers_in_the_trunk_alone() -> None:
    trainable, trunk = parts()
    found = {id(weight) for weight in matrices(trunk)}
    assert [name for name, weight in trainable.denoiser.named_parameters() if id(weight) in found] == MATRICES


@pytest.mark.parametrize(
    ("settings", "of_muon", "of_adamw"),
    [
        ({}, {"weight_decay": 0.1}, {"weight_decay": 0.1}),
        (
            {
                "momentum": 0.9,
                "weight_decay": 0.2,
                "adamw_lr": 3e-3,
                "adamw_betas": [0.8, 0.9],
                "adamw_eps": 1e-6,
                "adamw_weight_decay": 0.3,
            },
            {"momentum": 0.9, "weight_decay": 0.2},
            {"lr": 3e-3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3},
        ),
    ],
)
def test_it_is_the_two_of_torch_to_the_bit(settings: dict[str, Any], of_muon: dict[str, Any], of_adamw: dict[str, Any]) -> None:
    table = OptimizerTable.model_validate({"type": "muon", "lr": 1e-2, "lr_of": {"projector": 1e-1}, **settings})
    trainable, engine = engine_for(table)
    by_hand, _ = parts()
    named = dict(by_hand.denoiser.named_parameters())
    own = [weight for name, weight in named.items() if name in MATRICES]
    rest = [weight for name, weight in named.items() if name not in MATRICES]
    muon = torch.optim.Muon(own, **{"lr": 1e-2, "adjust_lr_fn": "match_rms_adamw", **of_muon})
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": [*by_hand.extra.parameters()], "lr": 1e-1}]
    adamw = torch.optim.AdamW(groups, fused=True, **{"lr": 1e-2, **of_adamw})
    rates = [group["lr"] for optimizer in (muon, adamw) for group in optimizer.param_groups]
    for step in range(4):
        one_step(trainable, engine, step)
        for group, rate in zip([*muon.param_groups, *adamw.param_groups], rates, strict=True):
            group["lr"] = rate * (1 / (1 + step))
        loss_at(by_hand, step).backward()
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(trainable.parameters(), by_hand.parameters(), strict=True))


def test_a_resumed_run_goes_on_to_the_bit_and_with_the_settings_that_it_has_now() -> None:
    table = OptimizerTable.model_validate({"type": "muon", "eps": 1e-6})
    trainable, engine = engine_for(table)
    for step in range(2):
        one_step(trainable, engine, step)
    kept = io.BytesIO()
    torch.save((trainable.state_dict(), engine.optimizer.state_dict()), kept)
    kept.seek(0)
    weights, state = torch.load(kept, weights_only=True)
    again, resumed = engine_for(table)
    again.load_state_dict(weights)
    resumed.load_optimizer(state, table)
    for step in range(2, 4):
        one_step(trainable, engine, step)
        one_step(again, resumed, step)
    assert all(torch.equal(one, other) for one, other in zip(trainable.parameters(), again.parameters(), strict=True))
    now = OptimizerTable.model_validate({"type": "muon", "eps": 1e-5, "adamw_betas": [0.5, 0.6], "lr": 1.0})
    _, changed = engine_for(now)
    changed.load_optimizer(state, now)
    of_muon, of_adamw = changed.optimizer.param_groups
    assert (of_muon["eps"], of_muon["initial_lr"]) == (1e-5, 1.0)
    assert (of_adamw["eps"], of_adamw["betas"], of_adamw["initial_lr"]) == (1e-8, (0.5, 0.6), 1.0)


def test_what_it_cannot_train_or_does_not_know_is_told() -> None:
    trainable, trunk = parts()
    for weight in matrices(trunk):
        weight.requires_grad_(False)
    with pytest.raises(InputError, match='nothing that is trained is a matrix of a block, which it is for; write "adamw"'):
        parameter_groups(trainable, OptimizerTable(type="muon"), trunk)
    assert optimizer_problems({"type": "muon", "adamw_beta": [0.9, 0.99]})[0][1].endswith("did you mean 'adamw_betas'?")
    assert "beta parameter" in optimizer_problems({"type": "muon", "adamw_betas": [1.5, 0.99]})[0][1]


def test_what_is_kept_of_each_weight_is_told_of_both_parts() -> None:
    trainable, engine = engine_for(OptimizerTable(type="muon"))
    one_step(trainable, engine, 0)
    found = dict(tensors_kept(engine.optimizer.state_dict()))
    of_muon, of_adamw = (
        {name.partition("optimizer:")[2][2:] for name in found if name.startswith(f"optimizer:{part}:")} for part in (0, 1)
    )
    assert of_muon == {f"{number}:momentum_buffer" for number in range(len(MATRICES))}
    others = len([*trainable.parameters()]) - len(MATRICES)
    assert of_adamw == {f"{number}:{slot}" for number in range(others) for slot in ("step", "exp_avg", "exp_avg_sq")}

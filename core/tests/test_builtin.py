"""The core's own part in the objective: targets of samples that keep what the model knows, and weights of what is given."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tunesmith import Batch, Caption, Config, Crop, Family, Loss, Model, Run, Source, Step
from tunesmith.builtin import CoreSettings, CoreWithObjective, aim_at_base, weigh_given

SQUARE = Crop((8, 8), (8, 8), (0, 0))


class Adapted:
    """A model that drops half of its input out while training, with an adapter that adds one."""

    def __init__(self) -> None:
        self.denoiser: Any = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8))
        self.adapter_is_on = True
        self.adapters: dict[str, Any] = {"adapter": self.switched_off}

    @contextmanager
    def switched_off(self):
        self.adapter_is_on = False
        yield
        self.adapter_is_on = True

    without_adapters = switched_off
    evaluating = Model.evaluating

    def predict(self, noisy: Tensor, sigma: Tensor, conditions: Batch) -> Tensor:
        out: Tensor = self.denoiser(noisy)
        return out + 1 if self.adapter_is_on else out


def step_of(shape: tuple[int, ...], sigma: Tensor, tmp_path: Any) -> Step:
    sources = tuple(Source("kept", tmp_path / "0.png", Caption(""), SQUARE) for _ in range(shape[0]))
    noisy, target = torch.randn(shape), torch.randn(shape)
    return Step(0, 0, 0, "train", Batch(sources, tuple(source.caption for source in sources)), sigma, noisy, noisy, target, keeps_base=True)


def run_of(model: Adapted) -> Run:
    return cast(Run, SimpleNamespace(model=model))


def test_the_target_has_neither_the_adapter_nor_dropout_in_it(tmp_path):
    model, step = Adapted(), step_of((2, 4, 8), torch.rand(2), tmp_path)
    aim_at_base(run_of(model), step)
    linear = model.denoiser[1]
    torch.testing.assert_close(step.target, step.noisy @ linear.weight.detach().T + linear.bias.detach())
    assert not step.target.requires_grad
    assert model.denoiser.training
    assert model.denoiser[0].training
    assert model.adapter_is_on


def test_other_targets_stay(tmp_path):
    model, step = Adapted(), step_of((2, 4, 8), torch.rand(2), tmp_path)
    step.keeps_base = False
    before = step.target.clone()
    aim_at_base(run_of(model), step)
    assert torch.equal(step.target, before)


def test_weights_cast_for_the_target_get_their_gradient_all_the_same(tmp_path):
    model, step = Adapted(), step_of((2, 4, 8), torch.rand(2), tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        aim_at_base(run_of(model), step)
        model.predict(step.noisy, step.sigma, step.batch).float().square().mean().backward()
    assert step.target.dtype == torch.float32
    gradient = model.denoiser[1].weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_what_is_given_weighs_nothing_in_a_mean_over_all(tmp_path):
    sigma = torch.tensor([0.0, 0.3, 0.9]).reshape(1, 1, 3, 1, 1)
    step = step_of((1, 2, 3, 4, 4), sigma, tmp_path)
    loss = Loss(torch.ones(1, 2, 3, 4, 4))
    weigh_given(loss, step)
    assert float(loss.total) == pytest.approx(2 / 3)


def test_a_sample_without_noise_is_not_given(tmp_path):
    step = step_of((2, 2, 4, 4), torch.tensor([0.0, 0.5]), tmp_path)
    loss = Loss(torch.ones(2, 2, 4, 4))
    weigh_given(loss, step)
    assert loss.weights == {}


def remarks(kind: str, weights: str, trains_base: bool) -> list[str]:
    config = SimpleNamespace(optimizer=SimpleNamespace(type=kind), run=SimpleNamespace(weights=weights), trains_base=trains_base)
    return list(CoreWithObjective("core", CoreSettings()).remarks(cast(Config, config), cast(Family, None)))


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_an_optimizer_that_makes_up_for_rounding_is_told_to_gain_nothing_on_adapters(weights):
    [told] = remarks("lion_kahan", weights, trains_base=False)
    assert told.startswith('[optimizer] type = "lion_kahan" gains nothing here')
    assert "adapters are kept in fp32" in told


def test_on_the_model_itself_it_gains_where_the_weights_are_bf16():
    assert remarks("adamw_kahan", "bf16", trains_base=True) == []
    assert "the model is kept in fp32" in remarks("adamw_kahan", "fp32", trains_base=True)[0]
    assert remarks("adamw", "bf16", trains_base=False) == []

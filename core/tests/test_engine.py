"""Devices, optimizers, clipping, and what fp16 does with a gradient that is not finite."""

import math

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from tunesmith import InputError
from tunesmith.config.tables import OptimizerTable, RunTable
from tunesmith.engine import Engine, choose_device, make_optimizer, parameter_groups
from tunesmith.model import Trainable


def a_layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def engine_for(layer: torch.nn.Linear, **settings) -> Engine:
    engine = Engine(RunTable(steps=1, precision="no", device="cpu"))
    engine.prepare(layer, make_optimizer(layer.parameters(), OptimizerTable(**settings)))
    return engine


@pytest.mark.parametrize("kind", ["adamw", "adam", "torch.optim.AdamW"])
def test_adam_is_fused_by_default_on_a_cpu_too(kind):
    assert make_optimizer(a_layer().parameters(), OptimizerTable(type=kind)).param_groups[0]["fused"] is True


def test_what_the_config_says_about_fusing_counts():
    optimizer = make_optimizer(a_layer().parameters(), OptimizerTable.model_validate({"fused": False}))
    assert optimizer.param_groups[0]["fused"] is False


def test_arguments_reach_the_optimizer_with_lists_as_tuples():
    optimizer = make_optimizer(
        a_layer().parameters(), OptimizerTable.model_validate({"betas": [0.8, 0.9], "weight_decay": 0.5, "lr": 0.25})
    )
    group = optimizer.param_groups[0]
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.8, 0.9), 0.5, 0.25)


def test_an_optimizer_by_import_path_is_used():
    assert type(make_optimizer(a_layer().parameters(), OptimizerTable(type="torch.optim.radam.RAdam"))) is torch.optim.RAdam


def test_what_the_optimizer_refuses_is_told_in_its_own_words():
    with pytest.raises(InputError, match=r"\[optimizer\] adamw refuses these arguments: .*beta parameter"):
        make_optimizer(a_layer().parameters(), OptimizerTable.model_validate({"betas": [1.5, 0.9]}))


class Picky(torch.optim.SGD):
    """An optimizer that looks at a value which is not there."""

    def __init__(self, params, lr, betas):
        super().__init__(params, lr=lr, momentum=betas[1])


def test_an_optimizer_that_fails_over_an_argument_is_told_without_a_traceback():
    with pytest.raises(InputError, match=r"Picky refuses these arguments: tuple index out of range"):
        make_optimizer(a_layer().parameters(), OptimizerTable(type=f"{__name__}.Picky", betas=[0.9]))


class Choosing(torch.optim.SGD):
    """Chooses for itself what is not said, and keeps that in its groups."""

    def __init__(self, params, lr=1e-3, momentum=0.0, rule=None):
        super().__init__(params, lr, momentum)
        for group in self.param_groups:
            group["rule"] = rule

    def step(self, closure=None):
        for group in self.param_groups:
            group["rule"] = group["rule"] or "chosen"
        return super().step(closure)


@pytest.mark.parametrize(("kind", "argument", "was", "default"), [("adamw", "weight_decay", 0.5, 1e-2), ("sgd", "nesterov", True, False)])
def test_an_argument_that_is_taken_out_is_the_default_after_a_resume(kind, argument, was, default):
    common = {"type": kind, "momentum": 0.9} if kind == "sgd" else {"type": kind}
    before, now = engine_for(a_layer(), **common, **{argument: was}), engine_for(a_layer(), **common)
    now.load_optimizer(before.optimizer.state_dict(), OptimizerTable.model_validate(common))
    assert before.optimizer.param_groups[0][argument] == was
    assert now.optimizer.param_groups[0][argument] == default


def test_what_an_optimizer_has_chosen_for_itself_stays_after_a_resume():
    common = {"type": f"{__name__}.Choosing"}
    before, now = engine_for(a_layer(), **common, momentum=0.9), engine_for(a_layer(), **common)
    before.update()
    now.load_optimizer(before.optimizer.state_dict(), OptimizerTable.model_validate(common))
    group = now.optimizer.param_groups[0]
    assert (group["rule"], group["momentum"]) == ("chosen", 0.0)


def test_clipping_by_norm_scales_and_reports_the_norm_before():
    layer = a_layer()
    engine = engine_for(layer, clip_norm=0.5)
    engine.backward(layer(torch.ones(1, 3)).sum() * 10)
    norm = engine.clip(OptimizerTable(clip_norm=0.5))
    assert norm is not None
    assert norm.item() == pytest.approx(10 * math.sqrt(8))
    clipped = torch.cat([parameter.grad.flatten() for parameter in layer.parameters() if parameter.grad is not None])
    assert clipped.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_clipping_by_value_bounds_each_element():
    layer = a_layer()
    engine = engine_for(layer)
    engine.backward(layer(torch.tensor([[1.0, -4.0, 0.01]])).sum())
    assert engine.clip(OptimizerTable(clip_value=0.1)).item() == pytest.approx(math.sqrt(2 * (1 + 1 + 16 + 0.0001)))
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad[0], torch.tensor([0.1, -0.1, 0.01]))


def test_the_update_is_a_bare_torch_update_at_the_scaled_rate():
    layer, bare = a_layer(), a_layer()
    engine = engine_for(layer, lr=0.5, type="sgd", clip_norm=None)
    engine.set_rate(0.25)
    engine.backward(layer(torch.ones(1, 3)).square().sum())
    engine.update()
    bare(torch.ones(1, 3)).square().sum().backward()
    assert bare.weight.grad is not None
    torch.testing.assert_close(layer.weight, bare.weight - 0.125 * bare.weight.grad)
    assert layer.weight.grad is None


def test_with_a_scaler_a_gradient_that_is_not_finite_skips_the_update():
    layer = a_layer()
    engine = engine_for(layer, lr=0.5, type="sgd")
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1)
    engine.accelerator.scaler = scaler
    engine._wrapped = AcceleratedOptimizer(engine.optimizer, device_placement=False, scaler=scaler)
    before = layer.weight.clone()
    engine.backward(layer(torch.ones(1, 3)).sum() * math.inf)
    engine.update()
    assert engine.update_was_skipped
    assert torch.equal(layer.weight, before)
    assert scaler.get_scale() == 8.0
    engine.backward(layer(torch.ones(1, 3)).sum())
    engine.update()
    assert scaler.get_scale() == 16.0
    assert not engine.update_was_skipped
    torch.testing.assert_close(layer.weight, before - 0.5)


def test_with_a_scaler_gradients_are_clipped_at_their_own_size():
    layer = a_layer()
    engine = engine_for(layer, type="sgd")
    scaler = engine.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    engine._wrapped = AcceleratedOptimizer(engine.optimizer, device_placement=False, scaler=scaler)
    engine.accelerator._optimizers = [engine._wrapped]
    engine.accelerator.native_amp, engine.accelerator.state._mixed_precision = True, "fp16"
    engine.backward(layer(torch.ones(1, 3)).sum())
    assert engine.clip(OptimizerTable(clip_norm=100.0)).item() == pytest.approx(math.sqrt(8))


def test_fp16_without_a_gpu_is_refused_with_a_way_on():
    with pytest.raises(InputError, match='precision = "fp16" needs a GPU'):
        Engine(RunTable(steps=1, precision="fp16", device="cpu"))


def test_a_device_that_is_no_device_or_not_there_is_named():
    with pytest.raises(InputError, match="'warp' is no torch device"):
        choose_device("warp")
    if torch.accelerator.current_accelerator(check_available=True) is None:
        with pytest.raises(InputError, match="'cuda' is not there"):
            choose_device("cuda")
        assert choose_device("auto") == torch.device("cpu")


def test_two_engines_in_one_process_may_differ():
    assert Engine(RunTable(steps=1, precision="bf16", device="cpu")).accelerator.mixed_precision == "bf16"
    assert Engine(RunTable(steps=1, precision="no", device="cpu")).accelerator.mixed_precision == "no"


def test_modules_of_plugins_have_their_own_learning_rates() -> None:
    trainable = Trainable(torch.nn.Linear(2, 2), torch.nn.ModuleDict({"projector": torch.nn.Linear(2, 3), "other": torch.nn.Linear(3, 2)}))
    trainable.denoiser.weight.requires_grad_(False)
    groups = parameter_groups(trainable, OptimizerTable.model_validate({"lr": 1e-4, "lr_of": {"projector": 1e-2}}))
    assert [(group.get("lr"), [tuple(one.shape) for one in group["params"]]) for group in groups] == [
        (None, [(2,), (2, 3), (2,)]),
        (1e-2, [(3, 2), (3,)]),
    ]
    optimizer = make_optimizer(groups, OptimizerTable.model_validate({"lr": 1e-4, "lr_of": {"projector": 1e-2}}))
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-4, 1e-2]


def test_a_learning_rate_of_a_plugin_that_trains_nothing_is_refused() -> None:
    trainable = Trainable(torch.nn.Linear(2, 2), torch.nn.ModuleDict({"projector": torch.nn.Linear(2, 3)}))
    with pytest.raises(InputError, match="'projektor' adds no module that is trained beside the model; those that do: projector"):
        parameter_groups(trainable, OptimizerTable.model_validate({"lr_of": {"projektor": 1e-2}}))

"""The update of each algorithm against its formula, what it leaves alone, and how it is switched off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.adapting import assert_dropout_acts_while_training_alone, assert_start_follows_the_seed, bare
from tunesmith import InputError, Part, Stage
from tunesmith.hooks import HookCaller
from tunesmith_lycoris import Lycoris, LycorisSettings
from tunesmith_lycoris.adapters import CHILD, Adapters
from tunesmith_lycoris.config import NetworkConfig, Preset
from tunesmith_lycoris.targets import select_layers

from .conftest import Trained, predict

BLOCKS, ATTENTIONS, PROJECTIONS = 4, 2, 4
ALGORITHMS: list[dict[str, Any]] = [
    {"algo": "lokr", "rank": 1},
    {"algo": "lokr", "rank": 1, "decompose_both": True, "factor": 8},
    {"algo": "lokr", "full_matrix": True, "factor": 4},
    {"algo": "lokr", "rank": 2, "dora_wd": True, "factor": 2},
    {"algo": "loha", "rank": 3},
    {"algo": "locon", "rank": 3, "alpha": 6},
    {"algo": "locon", "rank": 3, "dora_wd": True},
    {"algo": "locon", "rank": 3, "dora_wd": True, "wd_on_output": False},
    {"algo": "ia3"},
    {"algo": "ia3", "train_on_input": True},
    {"algo": "full"},
]
every_algorithm = pytest.mark.parametrize("settings", ALGORITHMS, ids=lambda one: "-".join(map(str, one.values())))


@every_algorithm
def test_fresh_adapters_change_nothing(make: Callable[..., Trained], base_prediction: Tensor, settings: dict[str, Any]) -> None:
    trained = make(**settings)
    assert len(trained.plugin.adapters.layers) == BLOCKS * ATTENTIONS * PROJECTIONS
    torch.testing.assert_close(trained.predict(), base_prediction, rtol=0, atol=2e-6)


@every_algorithm
def test_every_adapter_learns_in_fp32_with_checkpointing_as_without(make: Callable[..., Trained], settings: dict[str, Any]) -> None:
    gradients = []
    for checkpoints in (False, True):
        trained = make(**settings)
        trained.disturb()
        if checkpoints:
            trained.model.denoiser.enable_gradient_checkpointing()
        trained.model.denoiser.train()
        predict(trained.model).square().mean().backward()
        gradients.append({name: value.grad for name, value in trained.adapter.items()})
        assert {value.dtype for value in trained.adapter.values()} == {torch.float32}
        assert all(value.grad is None for value in trained.model.denoiser.parameters() if not value.requires_grad)
    for name, plain in gradients[0].items():
        assert plain is not None
        assert plain.abs().sum() > 0, name
        torch.testing.assert_close(gradients[1][name], plain, rtol=0, atol=1e-6)


@every_algorithm
def test_without_adapters_the_model_is_the_base_and_afterwards_as_before(
    make: Callable[..., Trained], base_prediction: Tensor, settings: dict[str, Any]
) -> None:
    trained = make(**settings)
    trained.disturb()
    adapted = trained.predict()
    assert (adapted - base_prediction).abs().max() > 0.01
    with trained.model.without_adapters():
        assert torch.equal(trained.predict(), base_prediction)
        with trained.model.without_adapters():
            pass
        assert torch.equal(trained.predict(), base_prediction)
    assert torch.equal(trained.predict(), adapted)
    assert not trained.model.trains_base


@every_algorithm
def test_adapters_work_under_bf16_autocast(make: Callable[..., Trained], settings: dict[str, Any]) -> None:
    trained = make(**settings)
    trained.disturb()
    plain = trained.predict()
    with torch.autocast("cpu", torch.bfloat16):
        prediction = predict(trained.model)
        prediction.square().mean().backward()
    torch.testing.assert_close(prediction.detach().float(), plain, rtol=0.1, atol=0.1 * float(plain.abs().max()))
    assert all(value.grad is not None and value.grad.isfinite().all() and value.grad.any() for value in trained.adapter.values())


OPERATIONS: dict[int, Callable[..., Tensor]] = {2: functional.linear, 3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


def factor(adapter: Any, name: str) -> Tensor:
    found: dict[str, Tensor] = dict(adapter.named_parameters())
    weight = found[f"lokr_{name}"] if f"lokr_{name}" in found else found[f"lokr_{name}_a"] @ found[f"lokr_{name}_b"]
    return weight.detach().double()


def expected_weight(layer: Any, adapter: Any, algo: str, scale: float, dora: str | None) -> Any:
    """The layer's weight with its update in float64, by the formulas of the papers."""
    weight, shape = layer.weight.detach().double(), layer.weight.shape
    values = {name: value.detach().double() for name, value in adapter.named_parameters()}
    if algo == "locon":
        update = values["lora_up.weight"].flatten(1) @ values["lora_down.weight"].flatten(1)
    elif algo == "loha":
        update = (values["hada_w1_a"] @ values["hada_w1_b"]) * (values["hada_w2_a"] @ values["hada_w2_b"])
    elif algo == "lokr":
        first, second = factor(adapter, "w1"), factor(adapter, "w2")
        second = second.reshape(second.shape[0], -1, shape[2:].numel())  # the kernel belongs to the second factor
        update = torch.einsum("ab,cdk->acbdk", first, second)
    elif algo == "ia3":
        ratio = values["weight"].flatten()
        side = 1 if adapter.train_input else 0
        update = weight * ratio.view(*[-1 if axis == side else 1 for axis in range(weight.ndim)])
    else:
        update = values["weight"]
    changed = weight + scale * update.reshape(shape)
    if dora is None:
        return changed
    rows = changed.flatten(1)
    if dora == "rows":
        return changed * (values["dora_scale"].flatten() / rows.norm(dim=1)).view(-1, *[1] * (weight.ndim - 1))
    return changed * (values["dora_scale"].flatten() / rows.norm(dim=0)).view(1, -1)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 16), (5, 24)),
    "pointwise": (lambda: nn.Conv2d(24, 16, 1), (2, 24, 5, 6)),
    "kernel": (lambda: nn.Conv2d(24, 16, 3, padding=1, stride=2), (2, 24, 7, 6)),
    "along": (lambda: nn.Conv1d(24, 16, 3, padding=1), (2, 24, 7)),
    "volume": (lambda: nn.Conv3d(8, 16, (1, 2, 2), stride=(1, 2, 2)), (2, 8, 3, 4, 4)),
    "depth": (lambda: nn.Conv2d(24, 24, 3, padding=1, groups=24), (2, 24, 5, 6)),
    "wide": (lambda: nn.Conv2d(24, 16, 3, dilation=2), (2, 24, 7, 8)),
}
FORMULAS: list[tuple[dict[str, Any], float, str | None]] = [
    ({"algo": "locon", "linear_dim": 3, "linear_alpha": 6}, 2, None),
    ({"algo": "loha", "linear_dim": 4, "linear_alpha": 1}, 1 / 4, None),
    ({"algo": "lokr", "linear_dim": 1, "linear_alpha": 3, "factor": 2}, 3, None),
    ({"algo": "lokr", "linear_dim": 1, "linear_alpha": 3, "factor": 4, "decompose_both": True}, 3, None),
    ({"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 4, "full_matrix": True}, 1, None),
    ({"algo": "ia3", "linear_dim": 1}, 1, None),
    ({"algo": "full", "linear_dim": 1}, 1, None),
    ({"algo": "locon", "linear_dim": 3, "linear_alpha": 6, "dora_wd": True}, 2, "rows"),
    ({"algo": "loha", "linear_dim": 4, "dora_wd": True}, 1, "rows"),
    ({"algo": "lokr", "linear_dim": 1, "factor": 2, "dora_wd": True}, 1, "rows"),
]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    ("config", "scale", "dora"), FORMULAS, ids=lambda one: "-".join(map(str, one.values())) if isinstance(one, dict) else ""
)
@pytest.mark.parametrize("bypass", [None, False], ids=["default", "rebuilt"])
def test_an_adapted_layer_is_the_formula_of_its_algorithm(
    kind: str, config: dict[str, Any], scale: float, dora: str | None, bypass: bool | None
) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    network = nn.Sequential(make())
    layer: Any = network[0]
    network_config = NetworkConfig(**config, bypass_mode=bypass, apply_preset=Preset(target_module=(), target_name=("0",)))
    adapters = Adapters(network, select_layers(network, network_config), network_config)
    adapter = adapters.layers["0"].adapter
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if config["algo"] == "lokr" and not hasattr(adapter, "lokr_w2_a"):
        scale = 1  # both factors are whole: there is no rank
    x = torch.randn(shape)
    weight = expected_weight(layer, adapter, config["algo"], scale, dora)
    bias = layer.bias.detach().double() + (adapter.bias.detach().double() if config["algo"] == "full" else 0)
    expected = OPERATIONS[weight.ndim](x.double(), weight, bias, **adapter.kw_dict)
    torch.testing.assert_close(network(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_ia3_scales_what_goes_in(make: Callable[..., Trained]) -> None:
    trained = make(algo="ia3", train_on_input=True, targets=["proj_out"])
    trained.disturb()
    layer, x = trained.model.denoiser.proj_out, torch.randn(3, 32)
    expected = functional.linear(x, expected_weight(layer, layer.lycoris, "ia3", 1, None).float(), layer.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"algo": "ia3"},
        {"algo": "full"},
        {"algo": "locon", "rank": 2, "bypass_mode": False},
        {"algo": "lokr", "factor": 2, "rank": 2, "dora_wd": True},
    ],
    ids=lambda one: one["algo"],
)
def test_an_update_that_is_too_small_for_bf16_weights_still_counts(make: Callable[..., Trained], settings: dict[str, Any]) -> None:
    trained = make(weights="bf16", targets=["attn2.to_q"], **settings)
    layer = trained.model.denoiser.transformer_blocks[0].attn2.to_q
    assert layer.weight.dtype == torch.bfloat16
    assert {value.dtype for value in trained.adapter.values()} == {torch.float32}
    with torch.no_grad():
        for name, parameter in layer.lycoris.named_parameters():
            parameter.add_(1e-4 if settings["algo"] in ("ia3", "full") or name != "lora_down.weight" else 0)
    x = torch.randn(64, 32)
    with torch.no_grad():
        exact = (
            expected_weight(layer, layer.lycoris, settings["algo"], 1, "rows" if "dora_wd" in settings else None) - layer.weight.double()
        )
        bias = layer.lycoris.bias if settings["algo"] == "full" else None
        expected = functional.linear(x.double(), exact, None if bias is None else bias.double())
        layer.weight.data = layer.weight.data.float()  # the same numbers, so that only the update is rounded, or not
        layer.bias.data = layer.bias.data.float()
        found = layer(x) - functional.linear(x, layer.weight, layer.bias)
    assert exact.abs().max() > 0
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-6)


def test_adapters_on_bf16_weights_learn(make: Callable[..., Trained]) -> None:
    for settings in ALGORITHMS:
        trained = make(weights="bf16", **settings)
        trained.disturb()
        predict(trained.model).square().mean().backward()
        assert all(value.grad is not None and value.grad.dtype == torch.float32 and value.grad.any() for value in trained.adapter.values())


def test_the_start_is_a_function_of_the_runs_seed(make: Callable[..., Trained]) -> None:
    assert_start_follows_the_seed(make)


def test_attaching_leaves_the_global_generator_and_the_log_alone(make: Callable[..., Trained], capsys: pytest.CaptureFixture[str]) -> None:
    trained = make(rank=2, targets=["to_q"])
    provider = bare(trained)
    before, level = torch.random.get_rng_state(), logging.getLogger("LyCORIS").level
    capsys.readouterr()
    HookCaller([provider, Lycoris("lycoris", LycorisSettings(rank=31))]).load_model(trained.run, Part.DENOISER)
    assert provider.model.adapters.keys() == {"lycoris"}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert logging.getLogger("LyCORIS").level == level
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "settings",
    [
        {"algo": "locon", "rank": 4, "dropout": 0.5},
        {"algo": "lokr", "rank": 1, "dropout": 0.5},
        {"algo": "loha", "rank": 4, "rank_dropout": 0.5},
        {"algo": "locon", "rank": 4, "rank_dropout": 0.5},
        *({"algo": algo, "module_dropout": 0.5} for algo in ("lokr", "loha", "locon", "ia3", "full")),
    ],
    ids=lambda one: "-".join(map(str, one)) + "-" + one["algo"],
)
def test_every_dropout_acts_while_training_alone_and_is_drawn_from_the_global_generator(
    make: Callable[..., Trained], settings: dict[str, Any]
) -> None:
    trained, without = make(**settings), make(**{name: value for name, value in settings.items() if "dropout" not in name})
    assert_dropout_acts_while_training_alone(trained, without)


class Packed(nn.Linear):
    """A layer whose weight cannot be added to."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.whole = self.weight.detach().clone()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.whole, self.bias)


@pytest.mark.parametrize(
    "config", [one for one, _, dora in FORMULAS if dora is None and one["algo"] not in ("full",)], ids=lambda one: one["algo"]
)
def test_a_quantised_layer_is_adapted_by_what_it_gives(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network: Any = nn.Sequential(Packed(24, 16))
    network_config = NetworkConfig(**config, bypass_mode=False, apply_preset=Preset(target_module=("Linear",)))
    adapters = Adapters(network, select_layers(network, network_config), network_config)
    x, plain = torch.randn(5, 24), network[0].whole
    assert torch.equal(network(x), functional.linear(x, plain, network[0].bias))
    adapter = adapters.layers["0"].adapter
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    network(x).square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in adapter.parameters())


@pytest.mark.parametrize("config", [{"algo": "full"}, {"algo": "locon", "dora_wd": True}], ids=["full", "dora"])
def test_what_needs_the_weight_itself_is_refused_on_a_quantised_layer(config: dict[str, Any]) -> None:
    network = nn.Sequential(Packed(24, 16))
    network_config = NetworkConfig(linear_dim=2, **config, apply_preset=Preset(target_module=("Linear",)))
    with pytest.raises(InputError, match="of 0, whose weight is quantised; use lokr"):
        Adapters(network, select_layers(network, network_config), network_config)


def test_only_the_denoiser_is_adapted_within_the_stage_for_adapters(make: Callable[..., Trained]) -> None:
    trained = make(rank=2)
    assert trained.plugin.stage is Stage.ADAPT
    assert all(f".{CHILD}." in name for name in trained.adapter)
    assert list(trained.model.adapters) == ["lycoris"]

"""The adapter in the denoiser: where it attaches, how it starts, what it leaves alone, and how it is switched off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.adapting import assert_dropout_acts_while_training_alone, assert_start_follows_the_seed, bare
from tunesmith import InputError, Part, Stage
from tunesmith.hooks import HookCaller
from tunesmith_lora import LoraSettings
from tunesmith_lora.targets import target_modules

from .conftest import Trained, predict

BLOCKS, ATTENTIONS, PROJECTIONS, WIDTH = 4, 2, 4, 32


def layers(trained: Trained) -> set[str]:
    """The layers that carry an adapter."""
    return {name.split(".lora_")[0] for name in trained.adapter}


def test_a_fresh_adapter_changes_nothing(make: Callable[..., Trained], base_prediction: Tensor) -> None:
    assert torch.equal(make(rank=4, alpha=8).predict(), base_prediction)


def test_the_families_targets_are_adapted_at_the_rank(make: Callable[..., Trained]) -> None:
    trained = make(rank=3)
    assert len(layers(trained)) == BLOCKS * ATTENTIONS * PROJECTIONS
    assert sum(parameter.numel() for parameter in trained.adapter.values()) == BLOCKS * ATTENTIONS * PROJECTIONS * 2 * 3 * WIDTH


def test_only_the_adapter_is_trained(make: Callable[..., Trained]) -> None:
    trained = make(rank=2)
    before = {name: value.clone() for name, value in trained.base.items()}
    optimizer = torch.optim.SGD(trained.adapter.values(), lr=1.0)
    for _ in range(2):  # the first step moves lora_B alone
        optimizer.zero_grad()
        predict(trained.model).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained.adapter.values())
    assert all(".lora_" in name for name in trained.adapter)
    assert before.keys() == trained.base.keys()
    assert all(torch.equal(value, trained.base[name]) for name, value in before.items())


def test_without_adapters_the_model_is_the_base_and_afterwards_as_before(make: Callable[..., Trained], base_prediction: Tensor) -> None:
    trained = make(rank=4)
    trained.disturb()
    adapted, names = trained.predict(), set(trained.adapter)
    assert (adapted - base_prediction).abs().max() > 0.01
    with trained.model.without_adapters():
        assert torch.equal(trained.predict(), base_prediction)
        with trained.model.without_adapters():
            pass
        assert torch.equal(trained.predict(), base_prediction)
    assert torch.equal(trained.predict(), adapted)
    assert set(trained.adapter) == names
    assert not trained.model.trains_base


def test_a_look_at_the_base_between_forward_and_backward_changes_no_gradient(make: Callable[..., Trained]) -> None:
    gradients = []
    for look in (False, True):
        trained = make(rank=2)
        trained.disturb()
        loss = predict(trained.model).square().mean()
        if look:
            with torch.no_grad(), trained.model.without_adapters():
                predict(trained.model)
        loss.backward()
        gradients.append([parameter.grad for parameter in trained.adapter.values()])
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_start_is_a_function_of_the_runs_seed(make: Callable[..., Trained]) -> None:
    assert_start_follows_the_seed(make)


def test_attaching_leaves_the_global_generator_alone(make: Callable[..., Trained]) -> None:
    trained = make(rank=2)
    provider = bare(trained)
    before = torch.random.get_rng_state()
    HookCaller([provider, trained.plugin]).load_model(trained.run, Part.DENOISER)
    assert provider.model.adapters.keys() == {"lora"}
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_adapter_is_kept_in_fp32_on_a_bf16_base(make: Callable[..., Trained]) -> None:
    trained = make(rank=2, weights="bf16")
    assert {parameter.dtype for parameter in trained.adapter.values()} == {torch.float32}
    assert {parameter.dtype for parameter in trained.base.values()} == {torch.bfloat16}
    predict(trained.model).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained.adapter.values())


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["attn2.to_q"], {f"transformer_blocks.{i}.attn2.to_q" for i in range(BLOCKS)}),
        ([r"transformer_blocks\.[01]\.attn1\.to_(q|k)"], {f"transformer_blocks.{i}.attn1.to_{x}" for i in (0, 1) for x in "qk"}),
        (
            ["proj_out", r".*\.3\.ff\.conv_(inverted|point)"],
            {"proj_out", "transformer_blocks.3.ff.conv_inverted", "transformer_blocks.3.ff.conv_point"},
        ),
    ],
    ids=["name", "pattern", "both"],
)
def test_targets_are_endings_of_names_or_patterns_of_whole_paths(
    make: Callable[..., Trained], base_prediction: Tensor, targets: list[str], expected: set[str]
) -> None:
    trained = make(rank=2, targets=targets)
    assert layers(trained) == expected
    assert torch.equal(trained.predict(), base_prediction)


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        (["to_qq"], r"'to_qq' matches no .* layer of SanaTransformer2DModel; the nearest are to_q"),
        (["to_q", "attn1"], r"'attn1' matches no .*the nearest are attn1\.to_"),
        (["mlp.w1.zz"], r"there are proj, .*to_out\.0.*conv_point"),
        ([r"blocks\.\d+"], r"matches no"),
        (["conv_depth"], r"conv_depth, a convolution of 160 groups, at rank 16.*multiple of 160"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_told(make: Callable[..., Trained], targets: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        make(targets=targets)


def test_a_pattern_that_does_not_compile_is_a_mistake_in_the_config() -> None:
    with pytest.raises(ValidationError, match=r"'to_\(q' is no regular expression"):
        LoraSettings(targets=("to_(q",))


def test_no_target_is_a_mistake_in_the_config() -> None:
    with pytest.raises(ValidationError):
        LoraSettings(targets=())


def test_a_dot_in_a_name_is_a_dot() -> None:
    network = nn.ModuleDict({"outX0": nn.Linear(2, 2)})
    with pytest.raises(InputError, match="the nearest are outX0"):
        target_modules(network, ("out.0",), 1)
    network["out"] = nn.Sequential(nn.Linear(2, 2))
    assert target_modules(network, ("out.0",), 1) == ["out.0"]


def test_only_the_denoiser_is_adapted(make: Callable[..., Trained]) -> None:
    trained = make(rank=2)
    decoder = trained.hooks.load_model(trained.run, Part.DECODER)
    assert decoder.adapters == {}
    assert trained.plugin.stage is Stage.ADAPT


def test_dropout_acts_while_training_alone_and_is_drawn_from_the_global_generator(make: Callable[..., Trained]) -> None:
    trained, without = make(rank=2, dropout=0.5), make(rank=2)
    assert_dropout_acts_while_training_alone(trained, without)

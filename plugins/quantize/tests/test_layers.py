"""A packed layer against the plain one that has the unpacked weight."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunesmith_quantize.formats import FORMAT_NAMES, FormatName, make_format
from tunesmith_quantize.layers import QuantizedLinear, QuantizedPointwise, can_be_quantized, quantized

CPU = torch.device("cpu")


def plain(kind: str) -> tuple[Any, Tensor]:
    """A layer, and states for it."""
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(80, 48), torch.randn(2, 5, 80)
    return nn.Conv2d(80, 48, 1), torch.randn(2, 80, 6, 4)


def packed(layer: Any, name: FormatName) -> Any:
    """The layer packed, and the plain one with what is had back of its weight."""
    layer.requires_grad_(False)
    made = quantized(layer, make_format(name), CPU)
    layer.weight.copy_(made.matrix(torch.float32).reshape(layer.weight.shape))
    return made


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("kind", ["linear", "pointwise"])
def test_output_and_gradient_are_those_of_the_unpacked_weight(kind: str, name: FormatName) -> None:
    layer, states = plain(kind)
    made = packed(layer, name)
    results = []
    for one in (layer, made):
        given = states.clone().requires_grad_()
        output = one(given)
        (gradient,) = torch.autograd.grad(output.square().sum(), given)
        results.append((output, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    assert isinstance(made, nn.Linear if kind == "linear" else nn.Conv2d)
    assert isinstance(made, QuantizedLinear if kind == "linear" else QuantizedPointwise)
    assert made.weight.ndim == layer.weight.ndim
    assert not any(parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize("kind", ["linear", "pointwise"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_rules_as_it_does_for_the_plain_layer(kind: str, given: torch.dtype) -> None:
    layer, states = plain(kind)
    made = packed(layer, "int8-torchao")
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = layer(states.to(given)), made(states.to(given))
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_without_autocast_states_in_bf16_stay_so() -> None:
    layer, states = plain("linear")
    assert packed(layer, "nf4-bnb")(states.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_no_unpacked_weight_outlives_its_product(name: FormatName, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, states = plain("linear")
    made = packed(layer, name)
    unpacked: list[weakref.ref[Tensor]] = []
    unpack = made.matrix

    def watched(dtype: torch.dtype) -> Tensor:
        matrix: Tensor = unpack(dtype)
        unpacked.append(weakref.ref(matrix))
        return matrix

    monkeypatch.setattr(made, "matrix", watched)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = made(states.requires_grad_())
    assert (len(unpacked), unpacked[0](), kept) == (1, None, [])
    output.sum().backward()
    assert (len(unpacked), unpacked[1]()) == (2, None)


def test_a_weight_may_be_elsewhere_between_forward_and_backward() -> None:
    layer, states = plain("linear")
    made = packed(layer, "nf4-bnb")
    given = states.clone().requires_grad_()
    (expected,) = torch.autograd.grad(made(given).sum(), given)
    output = made(given)
    home, made.weight.data = made.weight.data, torch.empty(0, dtype=torch.int8)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(output.sum(), given, retain_graph=True)
    made.weight.data = home
    (found,) = torch.autograd.grad(output.sum(), given)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_all_that_a_layer_is_made_of_moves_with_it(name: FormatName) -> None:
    made = packed(plain("linear")[0], name)
    number = make_format(name).num_bytes(48, 80, torch.float32) + 4 * 48  # and the bias
    assert sum(tensor.numel() * tensor.element_size() for tensor in (*made.parameters(), *made.buffers())) == number
    made.to("meta")
    assert {tensor.device.type for tensor in (*made.parameters(), *made.buffers())} == {"meta"}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(2, 2), True),
        (nn.Conv2d(2, 2, 1), True),
        (nn.Conv2d(2, 2, 1, groups=2), False),
        (nn.Conv2d(2, 2, 1, stride=2), False),
        (nn.Conv2d(2, 2, 1, padding=1), False),
        (nn.Conv2d(2, 2, (3, 1)), False),
        (nn.Conv3d(2, 2, 1), False),
        (type("Special", (nn.Linear,), {})(2, 2), False),
    ],
)
def test_layers_that_are_no_plain_product_are_left(layer: nn.Module, expected: bool) -> None:
    assert can_be_quantized(layer) is expected

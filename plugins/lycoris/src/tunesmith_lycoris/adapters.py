"""The adapters themselves: LyCORIS' modules on layers of the denoiser, exact on weights of any precision."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lycoris.functional.general import factorization
from lycoris.modules.full import FullModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

from tunesmith import InputError

from .config import LayerOptions, NetworkConfig
from .settings import LOW_RANK

CHILD = "lycoris"
"""The adapter's name within its layer, and so in the names of its parameters."""
TITLES = {"lokr": "LoKr", "loha": "LoHa", "locon": "LoCon", "ia3": "(IA)^3", "full": "whole differences"}
"""What the algorithms are called in sentences."""
PREFIX = "lycoris_"
"""What keys of a file begin with; the layer's path follows, with underscores for dots."""


class _Rebuilt:
    """Adds an update to weights in fp32: in the precision of bf16 weights, small updates would be rounded away."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.op = partial(_in_precision_of_input, self.op)  # type: ignore[has-type]

    def _current_weight(self) -> Tensor:
        weight: Tensor = super()._current_weight()  # type: ignore[misc]
        return weight.float()


class LoCon(_Rebuilt, LoConModule):  # type: ignore[misc, unused-ignore]
    """LoRA, of convolutions too (2309.14859)."""


class LoHa(_Rebuilt, LohaModule):  # type: ignore[misc, unused-ignore]
    """A Hadamard product of two updates of low rank (2108.06098)."""


class LoKr(_Rebuilt, LokrModule):  # type: ignore[misc, unused-ignore]
    """A Kronecker product of a small matrix and one of low rank (2212.10650)."""


class Ia3(IA3Module):  # type: ignore[misc, unused-ignore]
    """A scale 1 + w for each channel of the weight (2205.05638), applied to what goes in or comes out: no second weight is made.

    The bias is not scaled, as in the weights that other programs merge from a file.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer with its scale."""
        if _drops_module(self):
            return self.org_forward(x, *args, **kwargs)
        if self.train_input:
            return self.org_forward(x * (1 + self.weight.to(x.dtype)), *args, **kwargs)
        given: Tensor = self.org_forward(x, *args, **kwargs)
        bias = self.org_module[0].bias
        channels = given if bias is None else given - bias.detach().to(given.dtype).view(-1, *[1] * (self.weight.dim() - 2))
        return given + channels * self.weight.to(given.dtype)


class Full(FullModule):  # type: ignore[misc, unused-ignore]
    """The whole difference of weight and bias, kept beside them: the layer's own stay where they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._org_weight: list[Tensor] = []  # a copy on the CPU, which only merging needs, as is the next
        self.org_bias = None
        self.float()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer, and its difference."""
        given: Tensor = self.org_forward(x, *args, **kwargs)
        if _drops_module(self):
            return given
        bias = None if self.bias is None else self.bias.to(x.dtype)
        change: Tensor = self.op(x, self.weight.to(x.dtype), bias, **self.kw_dict)
        return given + change

    def custom_state_dict(self) -> None:
        """The difference as it is."""

    def load_weight_prehook(self, *args: Any) -> None:
        """Nothing: the difference is loaded as it is."""


KINDS: Mapping[str, type[Any]] = {"lokr": LoKr, "loha": LoHa, "locon": LoCon, "ia3": Ia3, "full": Full}


def _in_precision_of_input(op: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, **kwargs: Any) -> Tensor:
    result: Tensor = op(x, weight.to(x.dtype), bias, **kwargs)
    return result


def _drops_module(adapter: Any) -> bool:
    """Whether this call does without the update; drawn as LyCORIS draws it, from the generator that is seeded for each micro-batch."""
    return bool(adapter.module_dropout and adapter.training and torch.rand(1) < adapter.module_dropout)


def key_of(path: str) -> str:
    """A layer's name in a file."""
    return PREFIX + path.replace(".", "_")


def bypasses(layer: nn.Module, options: LayerOptions, config: NetworkConfig) -> bool:
    """Whether the update is added to what the layer gives: always on a quantised layer, else where it is the same function."""
    if options.algo not in LOW_RANK:
        return False
    if is_quantised(layer):
        return True
    if options.weight_decompose:
        return False
    if not isinstance(layer, nn.Linear):
        plain = layer.groups == 1 and all(step == 1 for step in layer.dilation)  # type: ignore[union-attr]
        if not plain or config.rank_dropout:
            return False
    return options.bypass_mode is not False


def made_weight(layer: nn.Module, options: LayerOptions, config: NetworkConfig) -> int:
    """How many numbers are made whenever the layer is called: as many as its weight has, or none."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if options.algo == "loha" or (options.algo in LOW_RANK and not bypasses(layer, options, config)):
        return weight.numel()
    return 0


def is_quantised(layer: nn.Module) -> bool:
    """Whether a layer's weight is packed, so that nothing can be added to it."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return not weight.is_floating_point() or type(weight.data) is not Tensor


def needs_weight(options: LayerOptions) -> str | None:
    """For what an adapter must find its layer's weight as it is, or None."""
    if options.algo == "full":
        return TITLES["full"]
    return "DoRA" if options.weight_decompose and options.algo in LOW_RANK else None


def is_wide(layer: nn.Module) -> bool:
    """Whether a layer is a convolution with a kernel above 1."""
    return not isinstance(layer, nn.Linear) and any(size != 1 for size in layer.kernel_size)  # type: ignore[union-attr]


def lokr_factors(layer: nn.Module, options: LayerOptions) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of the two factors whose Kronecker product is the update of [outputs, inputs]."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear):
        outputs, inputs = layer.out_features, layer.in_features
    else:
        outputs, inputs = weight.shape[:2]
    first_out, second_out = factorization(outputs, options.factor)
    first_in, second_in = factorization(inputs, options.factor)
    if options.unbalanced_factorization:
        first_out, second_out = second_out, first_out
    return (first_out, first_in), (second_out, second_in)


@dataclass(frozen=True)
class Adapted:
    """A layer and its adapter."""

    layer: nn.Module
    adapter: Any
    options: LayerOptions

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a file holds of the adapter, by LyCORIS' names, in fp32; the tensors themselves."""
        names = {"weight": "diff", "bias": "diff_b"} if self.options.algo == "full" else {}
        found = {names.get(name, name): parameter for name, parameter in self.adapter.named_parameters()}
        described = ("alpha",) if self.options.algo in LOW_RANK else ("on_input",) if self.options.algo == "ia3" else ()
        return {**found, **{name: getattr(self.adapter, name) for name in described}}


class Adapters:
    """All adapters of a denoiser, by the paths of their layers; they can be switched off together."""

    def __init__(self, network: nn.Module, layers: Mapping[str, LayerOptions], config: NetworkConfig) -> None:
        self.active = True
        self.config = config
        keys = [key_of(path) for path in layers]
        if len(set(keys)) < len(keys):
            raise InputError(f"two layers of {type(network).__name__} would have the same name in a file; name fewer targets")
        with _quiet():
            self.layers = {path: self._adapt(path, network.get_submodule(path), options) for path, options in layers.items()}

    def _adapt(self, path: str, layer: nn.Module, options: LayerOptions) -> Adapted:
        if is_quantised(layer) and (what := needs_weight(options)):
            raise InputError(f"lycoris cannot train {what} of {path}, whose weight is quantised; use lokr, loha or locon without `dora_wd`")
        config = self.config
        adapter = KINDS[options.algo](
            key_of(path),
            layer,
            lora_dim=options.rank,
            alpha=options.alpha,
            dropout=config.dropout,
            rank_dropout=config.rank_dropout,
            module_dropout=config.module_dropout,
            use_tucker=options.use_tucker,
            decompose_both=options.decompose_both,
            factor=options.factor,
            weight_decompose=options.weight_decompose,
            wd_on_out=options.wd_on_out,
            full_matrix=options.full_matrix,
            unbalanced_factorization=options.unbalanced_factorization,
            train_on_input=options.train_on_input,
            bypass_mode=bypasses(layer, options, config),
        )
        layer.add_module(CHILD, adapter)  # a part of the denoiser: trained, resumed, averaged and placed with it
        layer.forward = partial(self._forward, adapter)
        return Adapted(layer, adapter, options)

    def _forward(self, adapter: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Instead of the layer's own: with the adapter, or without."""
        result: Tensor = adapter(*args, **kwargs) if self.active else adapter.org_forward(*args, **kwargs)
        return result

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Run the layers without their adapters, and afterwards again as before."""
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what LyCORIS says on the screen, which the plugin's remarks say before."""
    logger = logging.getLogger("LyCORIS")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

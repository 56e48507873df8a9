"""Layers whose frozen weight is kept in few bits: it is unpacked to be multiplied with, and forgotten again."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .formats import Format, Packed

Layer: TypeAlias = nn.Linear | nn.Conv2d
"""What can be quantised: a linear layer, or a convolution that is one."""


class _Product(torch.autograd.Function):
    """Multiply with a frozen layer; for the backward pass its weight is unpacked once more.

    autograd would keep the unpacked weight of every layer until backward, and so take more memory than without quantisation.
    The weight is read from the layer then, wherever it has been moved in between.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, layer: QuantizedLinear | QuantizedPointwise) -> Tensor:
        ctx.layer = layer
        return layer.multiply(states, layer.matrix(states.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.multiply_back(gradient, ctx.layer.matrix(gradient.dtype)), None


class _Quantized(nn.Module):
    """What both kinds of layers share: `weight` is the packed data, scales are buffers, and neither is trained.

    Before `hold` one is a plain layer: peft makes the parts of an adapter by the type of the convolution that it adapts.
    """

    format: Format | None = None
    rank: ClassVar[int]
    """Dimensions of the weight, which adapters count to know what they adapt."""

    def hold(self, format: Format, packed: Packed, bias: Tensor | None) -> None:
        """Take a packed matrix in place of the weight."""
        data = packed.data
        self.format, self._layout, self._shape, self._scales = format, packed.layout, data.shape, tuple(packed.scales)
        self.register_parameter("weight", nn.Parameter(data.reshape(*data.shape, *[1] * (self.rank - data.ndim)), requires_grad=False))
        self.register_parameter("bias", cast(nn.Parameter | None, bias))
        for name, scale in packed.scales.items():
            self.register_buffer(f"scale_{name}", scale)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in], as near as the format has it; RuntimeError where none is held."""
        if self.format is None:
            raise RuntimeError("the layer holds no packed weight")
        scales = {name: getattr(self, f"scale_{name}") for name in self._scales}
        data = cast(Tensor, self.weight).data.reshape(self._shape)
        return self.format.unpack(Packed(data, scales, self._layout), dtype)

    def forward(self, states: Tensor) -> Tensor:
        """As the layer itself, in the precision of autocast where that is on, otherwise in that of the states."""
        if self.format is None:
            plain: Tensor = super().forward(states)
            return plain
        device = states.device.type
        if torch.is_autocast_enabled(device):
            states = states.to(torch.get_autocast_dtype(device))
        product: Tensor = _Product.apply(states, self)  # type: ignore[no-untyped-call]
        return product

    def extra_repr(self) -> str:
        """The format beside the shape."""
        return super().extra_repr() + (f", format={self.format.name}" if self.format else "")


class QuantizedLinear(_Quantized, nn.Linear):
    """A linear layer with a packed weight."""

    rank = 2

    def multiply(self, states: Tensor, matrix: Tensor) -> Tensor:
        """States [..., in] to [..., out]."""
        return F.linear(states, matrix, None if self.bias is None else self.bias.to(states.dtype))

    def multiply_back(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        """The gradient [..., out] to that of the states, [..., in]."""
        return gradient @ matrix


class QuantizedPointwise(_Quantized, nn.Conv2d):
    """A convolution of one pixel, which is a linear layer at each of them, with a packed weight."""

    rank = 4

    def multiply(self, states: Tensor, matrix: Tensor) -> Tensor:
        """States [B, in, H, W] to [B, out, H, W]."""
        return F.conv2d(states, matrix[..., None, None], None if self.bias is None else self.bias.to(states.dtype))

    def multiply_back(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        """The gradient [B, out, H, W] to that of the states, [B, in, H, W]."""
        return F.conv2d(gradient, matrix.t()[..., None, None])


def can_be_quantized(module: nn.Module) -> bool:
    """Whether a module is a linear layer, or a convolution that is one: of one pixel, and without groups."""
    if type(module) is nn.Linear:  # a subclass does something of its own
        return True
    return type(module) is nn.Conv2d and {*module.kernel_size, *module.stride, module.groups} == {1} and module.padding in (0, (0, 0))


def matrix_shape(layer: Layer) -> tuple[int, int]:
    """Rows and columns of the weight."""
    return layer.weight.shape[0], layer.weight.shape[1]


@torch.no_grad()
def quantized(layer: Layer, format: Format, device: torch.device) -> QuantizedLinear | QuantizedPointwise:
    """The layer with its weight packed on `device`, and then kept where it was."""
    home = layer.weight.device
    packed = format.pack(layer.weight.detach().flatten(1).to(device))
    packed = Packed(packed.data.to(home), {name: scale.to(home) for name, scale in packed.scales.items()}, packed.layout)
    if isinstance(layer, nn.Linear):
        made: QuantizedLinear | QuantizedPointwise = QuantizedLinear(layer.in_features, layer.out_features, bias=False, device="meta")
    else:
        made = QuantizedPointwise(layer.in_channels, layer.out_channels, 1, bias=False, device="meta")
    made.hold(format, packed, layer.bias)
    return made.train(layer.training)

"""Formats of frozen weights: how a library packs a matrix into few bits, and how the matrix is had back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

FormatName: TypeAlias = Literal["nf4-bnb", "fp4-bnb", "int8-bnb", "int8-torchao", "int4-torchao", "fp8-torchao", "int8-quanto"]
"""A data type, and the library that packs it."""
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)


@dataclass(frozen=True)
class Packed:
    """A matrix in few bits: `data` [..] of int8, tensors that belong to it by name, and what else its format must know."""

    data: Tensor
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    layout: Any = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.data, *self.scales.values()))


class Format(ABC):
    """One way to keep a matrix [rows, columns]; whatever the data type, `data` is int8, so that nothing takes it for numbers."""

    install: ClassVar[str]
    """What pip installs for it."""

    def __init__(self, name: FormatName) -> None:
        self.name = name
        self.data_type, _, self.library = name.partition("-")

    @abstractmethod
    def pack(self, matrix: Tensor) -> Packed:
        """Pack a matrix [rows, columns] of fp32 or bf16 on its device."""

    @abstractmethod
    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """The matrix [rows, columns], as near as the format has it."""

    @abstractmethod
    def num_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> int:
        """Bytes that a matrix of this dtype takes when it is packed."""

    def obstacle(self, *devices: torch.device) -> str | None:
        """Why this format cannot be had on these devices here, or None: it is tried on a small matrix."""
        try:
            packed = self.pack(torch.ones((32, 64), device=devices[0]))
            for device in devices:
                there = Packed(packed.data.to(device), {name: scale.to(device) for name, scale in packed.scales.items()}, packed.layout)
                self.unpack(there, torch.bfloat16)
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed: pip install '{self.install}'"
        except (ImportError, RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as error:
            kinds = " and ".join(sorted({device.type for device in devices}))
            return f"it cannot be had on {kinds}: {str(error).splitlines()[0]}"
        return None


class Outline(Format):
    """Another format in a rehearsal: as many bytes, and no library at work on what has no values."""

    install = ""

    def __init__(self, format: Format) -> None:
        super().__init__(format.name)
        self.format = format

    def pack(self, matrix: Tensor) -> Packed:
        """So many bytes."""
        rows, columns = matrix.shape
        return Packed(matrix.new_empty(self.num_bytes(rows, columns, matrix.dtype), dtype=torch.int8), layout=(rows, columns))

    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """A matrix of that shape."""
        return packed.data.new_empty(packed.layout, dtype=dtype)

    def num_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> int:
        """Those of the format."""
        return self.format.num_bytes(rows, columns, dtype)


class Blockwise(Format):
    """bitsandbytes in four bits: blocks of 64 values share their largest size (2305.14314).

    A matrix is packed as one row: bitsandbytes 0.50 unpacks others wrongly on a CPU whose columns are no multiple of 64.
    """

    install = "tunesmith-quantize"
    block = 64
    scales_per_block = 256
    """Of double quantisation: so many scales share one of their own."""

    def __init__(self, name: FormatName, double: bool) -> None:
        super().__init__(name)
        self.double = double

    def pack(self, matrix: Tensor) -> Packed:
        """Two values a byte, and a scale a block: in fp32, or with double quantisation in eight bits."""
        from bitsandbytes import functional

        row = matrix.reshape(1, -1)
        data, state = functional.quantize_4bit(row, blocksize=self.block, compress_statistics=self.double, quant_type=self.data_type)
        scales = {"absmax": state.absmax}
        if self.double:
            scales |= {"absmax_of_absmax": state.state2.absmax, "code_of_absmax": state.state2.code, "offset": state.offset}
        return Packed(data.view(torch.int8), scales, tuple(matrix.shape))

    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """The matrix, in the dtype asked for."""
        from bitsandbytes import functional

        scales, nested = packed.scales, {}
        if self.double:
            inner = functional.QuantState(
                scales["absmax_of_absmax"], code=scales["code_of_absmax"], blocksize=self.scales_per_block, dtype=torch.float32
            )
            nested = {"offset": scales["offset"], "state2": inner}
        row = torch.Size((1, math.prod(packed.layout)))
        state = functional.QuantState(scales["absmax"], row, blocksize=self.block, quant_type=self.data_type, dtype=dtype, **nested)
        values: Tensor = functional.dequantize_4bit(packed.data.view(torch.uint8), state)
        return values.reshape(packed.layout)

    def num_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> int:
        """Half a byte a value, and the scales."""
        blocks = math.ceil(rows * columns / self.block)
        scales = blocks + 4 * (math.ceil(blocks / self.scales_per_block) + 256 + 1) if self.double else 4 * blocks
        return math.ceil(rows * columns / 2) + scales


class Rowwise(Format):
    """bitsandbytes in int8: each row has its largest size (2208.07339); inputs are not quantised."""

    install = "tunesmith-quantize"

    def pack(self, matrix: Tensor) -> Packed:
        """A value a byte, and a scale in fp32 a row."""
        from bitsandbytes import functional

        data, absmax, _ = functional.int8_vectorwise_quant(matrix.half().contiguous())
        return Packed(data, {"absmax": absmax})

    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """value * absmax / 127, without a copy in fp32."""
        return packed.data.to(dtype).mul_(packed.scales["absmax"].unsqueeze(1) / 127)

    def num_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> int:
        """A byte a value, and four a row."""
        return rows * columns + 4 * rows


class Subclassed(Format):
    """A library that packs a matrix into a tensor of a class of its own, which is taken apart and put together again."""

    @abstractmethod
    def tensor(self, matrix: Tensor) -> Any:
        """The matrix as a tensor of the library's."""

    def restored(self, tensor: Any, dtype: torch.dtype) -> Tensor:
        """The library's tensor as a plain one."""
        matrix: Tensor = tensor.dequantize().to(dtype)
        return matrix

    def pack(self, matrix: Tensor) -> Packed:
        """The library's data and scales."""
        tensor = self.tensor(matrix.contiguous())
        (name, *others), context = tensor.__tensor_flatten__()
        data = getattr(tensor, name)
        layout = (type(tensor), name, context, data.dtype, tensor.shape, tensor.stride())
        return Packed(data.view(torch.int8), {other: getattr(tensor, other) for other in others}, layout)

    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """The matrix, in the dtype asked for."""
        kind, name, context, data_type, shape, stride = packed.layout
        parts = {name: packed.data.view(data_type), **packed.scales}
        return self.restored(kind.__tensor_unflatten__(parts, context, shape, stride), dtype)


class Torchao(Subclassed):
    """torchao in int8 or fp8 (e4m3): each row has its scale."""

    install = "tunesmith-quantize[torchao]"

    def configuration(self, columns: int) -> Any:
        """What torchao is to do."""
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

        kind = Float8WeightOnlyConfig if self.data_type == "fp8" else Int8WeightOnlyConfig
        return kind(set_inductor_config=False)  # which is the process's, and no business of a weight

    def tensor(self, matrix: Tensor) -> Any:
        """The weight of a layer that torchao quantised."""
        from torchao.quantization import quantize_

        layer = bare_layer(matrix)
        quantize_(layer, self.configuration(matrix.shape[1]))
        return layer.weight

    def restored(self, tensor: Any, dtype: torch.dtype) -> Tensor:
        """The matrix, without one of another dtype on the way."""
        matrix: Tensor = tensor.dequantize(dtype)
        return matrix

    def num_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> int:
        """A byte a value and four a row; int8 has a zero point a row, too."""
        return rows * columns + (4 if self.data_type == "fp8" else 5) * rows


class TorchaoInt4(Torchao):
    """torchao in int4: groups of up to 128 values of a row share their scale.

    torchao's own kernels for int4 have no gradient; here it quantises, and two values are put into a byte.
    """

    largest_group = 128
    smallest_group = 16

    def group(self, columns: int) -> int:
        """Values that share a scale: as many as divide a row, and the whole row where those would be few."""
        shared = math.gcd(columns, self.largest_group)
        return shared if shared >= self.smallest_group else columns

    def configuration(self, columns: int) -> Any:
        """What torchao is to do."""
        from torchao.quantization import IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup

        int4 = torch.int4  # type: ignore[attr-defined]
        return IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(self.group(columns)))

    def restored(self, tensor: Any, dtype: torch.dtype) -> Tensor:
        """The matrix."""
        return Subclassed.restored(self, tensor, dtype)

    def pack(self, matrix: Tensor) -> Packed:
        """Two values a byte, and a scale and a zero point a group."""
        packed = super().pack(matrix)
        return Packed(in_pairs(packed.data), packed.scales, packed.layout)

    def unpack(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """The matrix, in the dtype asked for."""
        shape = packed.layout[4]
        return super().unpack(Packed(from_pairs(packed.data, shape), packed.scales, packed.layout), dtype)

    def num_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> int:
        """Half a byte a value; a group has a scale in the matrix's dtype and a zero point of a byte."""
        return math.ceil(rows * columns / 2) + rows * columns // self.group(columns) * (dtype.itemsize + 1)


class Quanto(Subclassed):
    """optimum-quanto in int8: each row has its scale."""

    install = "tunesmith-quantize[quanto]"

    def tensor(self, matrix: Tensor) -> Any:
        """The weight of a layer that optimum-quanto froze."""
        from optimum.quanto import qint8
        from optimum.quanto.nn import QLinear

        layer = QLinear.from_module(bare_layer(matrix), weights=qint8)
        layer.freeze()
        return layer.weight

    def num_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> int:
        """A byte a value, and a scale in the matrix's dtype a row."""
        return rows * columns + dtype.itemsize * rows


def make_format(name: FormatName, double: bool = False) -> Format:
    """The format of this name; `double` quantises the scales of four bits once more."""
    if name in ("nf4-bnb", "fp4-bnb"):
        return Blockwise(name, double)
    kinds: dict[str, type[Format]] = {"int8-bnb": Rowwise, "int4-torchao": TorchaoInt4, "int8-quanto": Quanto}
    return kinds.get(name, Torchao)(name)


def usable(*devices: torch.device) -> Iterator[FormatName]:
    """The formats that can be had on these devices here."""
    yield from (name for name in FORMAT_NAMES if make_format(name).obstacle(*devices) is None)


def bare_layer(matrix: Tensor) -> nn.Linear:
    """A layer of this weight and no bias."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(matrix, requires_grad=False)
    return layer


def in_pairs(values: Tensor) -> Tensor:
    """Values of int8 in [-8, 7], flat, two a byte; an odd one is alone in the last."""
    flat = values.flatten()
    flat = torch.cat([flat, flat.new_zeros(flat.numel() % 2)])
    return flat[0::2] & 0x0F | flat[1::2] << 4


def from_pairs(pairs: Tensor, shape: torch.Size) -> Tensor:
    """The values that `in_pairs` was given."""
    values = torch.stack([pairs << 4 >> 4, pairs >> 4], dim=1).flatten()
    return values[: shape.numel()].reshape(shape)

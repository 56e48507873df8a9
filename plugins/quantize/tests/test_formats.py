"""What each format makes of a matrix, against its own formula, worked out here without the library."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tunesmith_quantize.formats import FORMAT_NAMES, Blockwise, FormatName, from_pairs, in_pairs, make_format, usable

CPU = torch.device("cpu")
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
        *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""The levels of appendix E of QLoRA (2305.14314)."""
FP4 = torch.tensor([sign * level / 12 for sign in (-1, 1) for level in (0, 0.0625, 2, 3, 4, 6, 8, 12)])
"""Sign, two bits of exponent and one of mantissa, scaled to 1."""
SHAPES = [(48, 24), (160, 80), (64, 640), (33, 100)]
BLOCK, GROUP = 64, 128


def gaussian(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Values that half precision has, in which bitsandbytes reads what it packs in int8."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.05).half().to(dtype)


def nearest(matrix: Tensor, levels: Tensor) -> Tensor:
    """Blocks of 64 values in the order of memory, each value at the nearest level times the largest size of its block."""
    values = matrix.flatten()
    blocks = torch.nn.functional.pad(values, (0, -values.numel() % BLOCK)).reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    chosen = (blocks / largest).unsqueeze(-1).sub(levels).abs().argmin(-1)
    return (levels[chosen] * largest).flatten()[: values.numel()].reshape(matrix.shape)


def by_row(matrix: Tensor, steps: float, low: int, high: int) -> Tensor:
    """Whole numbers times a scale a row, which is its largest size over `steps`."""
    scale = matrix.abs().amax(1, keepdim=True) / steps
    return (matrix / scale).round().clamp(low, high) * scale


def in_int4(matrix: Tensor) -> Tensor:
    """Groups of a row: as many values as divide both it and 128, or the row, where those were fewer than 16."""
    rows, columns = matrix.shape
    group = next(size for size in (128, 64, 32, 16, columns) if columns % size == 0)
    return by_row(matrix.reshape(-1, group), 7.5, -8, 7).reshape(rows, columns)


def in_fp8(matrix: Tensor) -> Tensor:
    """e4m3, whose largest number is 448, times a scale a row."""
    scale = matrix.abs().amax(1, keepdim=True) / 448
    return (matrix / scale).to(torch.float8_e4m3fn).float() * scale


FORMULAS: dict[FormatName, Callable[[Tensor], Tensor]] = {
    "nf4-bnb": lambda matrix: nearest(matrix, NF4),
    "fp4-bnb": lambda matrix: nearest(matrix, FP4),
    "int8-bnb": lambda matrix: by_row(matrix, 127, -127, 127),
    "int8-torchao": lambda matrix: by_row(matrix, 127.5, -128, 127),
    "int4-torchao": in_int4,
    "fp8-torchao": in_fp8,
    "int8-quanto": lambda matrix: by_row(matrix, 127, -128, 127),
}
ERRORS = {"nf4": 0.1, "fp4": 0.13, "int8": 0.009, "int4": 0.12, "fp8": 0.03}
"""The most that normally distributed values lose, as a share of their size."""


def test_every_format_has_its_formula() -> None:
    assert set(FORMULAS) == set(FORMAT_NAMES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_a_matrix_comes_back_as_the_formula_has_it(name: FormatName, shape: tuple[int, int]) -> None:
    format, matrix = make_format(name), gaussian(shape)
    unpacked, expected = format.unpack(format.pack(matrix), torch.float32), FORMULAS[name](matrix)
    # what lies in the middle of two levels may be rounded either way, and is off by as much
    torch.testing.assert_close((unpacked - matrix).abs(), (expected - matrix).abs(), rtol=0, atol=1e-6)
    assert torch.isclose(unpacked, expected, rtol=1e-5, atol=1e-8).float().mean() > 0.95
    assert (unpacked - matrix).norm() / matrix.norm() < ERRORS[format.data_type]


@pytest.mark.parametrize("name", ["nf4-bnb", "fp4-bnb"])
def test_double_quantisation_moves_every_block_by_a_factor_near_one(name: FormatName) -> None:
    matrix = gaussian((640, 640))  # 6400 blocks: 25 scales of scales
    single, double = (format.unpack(format.pack(matrix), torch.float32) for format in (make_format(name), make_format(name, double=True)))
    single, double = single.reshape(-1, BLOCK), double.reshape(-1, BLOCK)
    factors = (single * double).sum(1, keepdim=True) / single.square().sum(1, keepdim=True)
    assert 0 < (factors - 1).abs().max() < 0.05
    torch.testing.assert_close(double, factors * single)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "double"), [*((name, False) for name in FORMAT_NAMES), ("nf4-bnb", True)])
def test_a_matrix_takes_the_bytes_that_are_foretold(name: FormatName, double: bool, shape: tuple[int, int], dtype: torch.dtype) -> None:
    format = make_format(name, double)
    packed = format.pack(gaussian(shape, dtype))
    assert packed.data.dtype == torch.int8
    assert packed.num_bytes == format.num_bytes(*shape, dtype)


@pytest.mark.parametrize(("name", "bits"), [("nf4-bnb", 4.5), ("int8-bnb", 8.01), ("int4-torchao", 4.19), ("fp8-torchao", 8.01)])
def test_a_large_matrix_takes_so_many_bits_a_weight(name: FormatName, bits: float) -> None:
    assert 8 * make_format(name).num_bytes(13824, 5120, torch.bfloat16) / (13824 * 5120) == pytest.approx(bits, abs=0.005)
    assert 8 * Blockwise("nf4-bnb", double=True).num_bytes(13824, 5120, torch.bfloat16) / (13824 * 5120) == pytest.approx(4.127, abs=0.001)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_in_bf16_a_matrix_is_what_it_is_in_fp32_rounded(name: FormatName) -> None:
    format = make_format(name)
    packed = format.pack(gaussian((160, 80)))
    half = format.unpack(packed, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), format.unpack(packed, torch.float32), rtol=2**-6, atol=1e-6)


def test_two_values_share_a_byte() -> None:
    values = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).flatten()[:-1].to(torch.int8).reshape(7, 73)
    pairs = in_pairs(values)
    assert pairs.numel() == 256
    assert torch.equal(from_pairs(pairs, values.shape), values)


def test_every_format_can_be_had_on_a_cpu() -> None:
    assert tuple(usable(CPU)) == FORMAT_NAMES


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("nf4-bnb", "bitsandbytes", "tunesmith-quantize"),
        ("fp8-torchao", "torchao", "tunesmith-quantize[torchao]"),
        ("int8-quanto", "optimum", "tunesmith-quantize[quanto]"),
    ],
)
def test_a_missing_library_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: FormatName, module: str, package: str
) -> None:
    for loaded in [one for one in sys.modules if one.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)  # what Python keeps of a module that is not there
    assert f"is not installed: pip install '{package}'" in str(make_format(name).obstacle(CPU))
    assert name not in tuple(usable(CPU))


def test_a_device_that_is_not_there_is_an_obstacle() -> None:
    assert "mps" in str(make_format("int8-bnb").obstacle(torch.device("mps")))

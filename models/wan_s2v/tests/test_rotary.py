"""Where tokens stand, and the factors that follow from it."""

from __future__ import annotations

from math import cos, sin
from typing import Any

import pytest
import torch

from tunesmith_wan_s2v.rotary import (
    RotaryFactors,
    TokenBox,
    motion_box,
    packed_motion_boxes,
    reference_box,
    rotary_factors,
    take_rotary,
    video_box,
)

from .goldens import difference, facts, tensors

CPU = torch.device("cpu")


def boxes_of(case: dict[str, Any]) -> list[TokenBox]:
    if case["kind"] == "framepack motion":
        return list(packed_motion_boxes(case["latent_h"] // 2, case["latent_w"] // 2))
    if case["kind"] == "unpacked motion":
        return [motion_box(case["frames"], case["h"], case["w"])]
    height, width = case["H"] // 2, case["W"] // 2
    return [
        video_box(case["T"], height, width),
        reference_box(case["RH"] // 2, case["RW"] // 2) if "RH" in case else reference_box(height, width),
    ]


@pytest.mark.parametrize("name", facts("rope")["cases"])
def test_factors_are_those_of_the_reference(name: str) -> None:
    case, golden = facts("rope")["cases"][name], tensors("rope")
    cosines, sines = rotary_factors(boxes_of(case), case["d"], CPU)
    for made, kind in ((cosines, "cos"), (sines, "sin")):
        assert made.dtype == torch.float32
        assert made.shape == (1, len(golden[f"{name}.{kind}"]), 1, case["d"])
        assert difference(made[0, :, 0, 0::2], golden[f"{name}.{kind}"]) < 1e-6
        assert torch.equal(made[..., 0::2], made[..., 1::2])


@pytest.mark.parametrize("size", facts("rope")["framepack_positions"])
def test_packed_motion_stands_where_the_reference_puts_it(size: str) -> None:
    height, width = (int(side) // 2 for side in size.split("x"))
    golden = facts("rope")["framepack_positions"][size]
    boxes = packed_motion_boxes(height, width)
    for box, group in zip(boxes, ("g1x", "g2x", "g4x"), strict=True):
        assert [list(box.frames), list(box.rows), list(box.columns)] == [golden[group][axis] for axis in "thw"]
    assert [box.tokens for box in boxes] == golden["n_tokens"]


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_groups_are_left_out_from_the_nearest_on(num_groups: int) -> None:
    assert packed_motion_boxes(8, 12, num_groups) == packed_motion_boxes(8, 12)[3 - num_groups :]


def test_one_factor_follows_the_formula() -> None:
    cosines, sines = rotary_factors([TokenBox((-19,), (7,), (1000,))], 128, CPU)  # axes of 44, 42 and 42 features
    for feature, position, pair, width in ((2 * 5, -19, 5, 44), (44 + 2 * 3, 7, 3, 42), (44 + 42 + 2 * 1, 1000, 1, 42)):
        angle = position * 10000 ** (-2 * pair / width)
        assert float(cosines[0, 0, 0, feature]) == pytest.approx(cos(angle), abs=1e-6)
        assert float(sines[0, 0, 0, feature]) == pytest.approx(sin(angle), abs=1e-6)


def test_factors_of_some_tokens_are_their_rows_for_each_sample() -> None:
    pair = rotary_factors([video_box(2, 2, 2)], 16, CPU)
    indices = torch.tensor([[0, 3, 7], [1, 2, 6]])
    for full, taken in zip(pair, take_rotary(pair, indices), strict=True):
        assert taken.shape == (2, 3, 1, 16)
        assert torch.equal(taken[1, :, 0], full[0, [1, 2, 6], 0])


def test_factors_are_made_once_for_a_geometry_and_a_few_are_kept() -> None:
    rope = RotaryFactors(16)
    small, large, huge = (video_box(1, side, side) for side in (2, 3, 4))
    first = rope((small,), CPU)
    assert rope((small,), CPU) is first
    rope((large,), CPU)
    rope((huge,), CPU)
    assert rope((small,), CPU) is not first
    assert len(rope._made) == 2


def test_factors_made_in_inference_mode_do_not_break_training() -> None:
    rope = RotaryFactors(16)
    with torch.inference_mode():
        rope((video_box(1, 2, 2),), CPU)
    cosines, _ = rope((video_box(1, 2, 2),), CPU)
    scale = torch.ones(1, requires_grad=True)
    (cosines * scale).sum().backward()
    torch.testing.assert_close(scale.grad, cosines.sum()[None])

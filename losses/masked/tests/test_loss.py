"""The weights that masks give the loss, by numbers worked out by hand and by those of a reference implementation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith import MASK, Batch, Caption, Loss, NoSettings, Plugin, Run, Stage, Step, TokenGrid, hookimpl
from tunesmith.config.tables import LossTable
from tunesmith.hooks import HookCaller
from tunesmith.objective import distance
from tunesmith.randomness import torch_generator
from tunesmith_masked import Masked, MaskedSettings

GOLDEN = Path(__file__).with_name("golden")
CASES = json.loads((GOLDEN / "masked_loss.json").read_text())["cases"]
TENSORS = load_file(GOLDEN / "masked_loss.safetensors")
WHITE, BLACK = 255, 0

Spans = Callable[[int], Sequence[range]]


class Objective(Plugin[NoSettings]):
    """Compares the prediction that a step already has with its target."""

    stage = Stage.LOAD
    distance = LossTable()

    @hookimpl
    def compute_loss(self, step: Step) -> Loss:
        assert step.prediction is not None
        return Loss(distance(step.prediction, step.target, step.sigma, self.distance))


def whole(frames: int) -> Sequence[range]:
    """One latent frame for all frames."""
    return (range(frames),)


def thirds(frames: int) -> Sequence[range]:
    """Three latent frames of clips of nine."""
    return (range(3), range(3, 6), range(6, 9)) if frames == 9 else whole(frames)


def step_of(latents: Tensor, mask: Tensor | None, mode: Literal["train", "eval"] = "train", position: int = 0) -> Step:
    """A step whose prediction is off by one everywhere."""
    fields = {} if mask is None else {MASK: mask}
    batch = Batch(captions=(Caption(""),) * len(latents), fields=cast(Any, fields))
    step = Step(position, 0, position, mode, batch, torch.full((len(latents),), 0.5), latents, latents, latents)
    step.prediction = latents + 1
    return step


def compute(step: Step, spans: Spans = whole, patch: int = 1, seed: int = 0, table: LossTable | None = None, **settings: Any) -> Loss:
    """The loss of a step; tokens are `patch` latents along each edge."""

    def token_grid(latents: Tensor) -> TokenGrid:
        return TokenGrid(latents.shape[2] if latents.ndim == 5 else 1, latents.shape[-2] // patch, latents.shape[-1] // patch)

    run = SimpleNamespace(
        family=SimpleNamespace(frame_spans=spans),
        model=SimpleNamespace(token_grid=token_grid),
        torch_generator=lambda purpose, *position: torch_generator(seed, purpose, *position),
    )
    objective = Objective("objective", NoSettings())
    objective.distance = table or LossTable()
    return HookCaller([objective, Masked("masked", MaskedSettings(**settings))]).compute_loss(cast(Run, run), step)


def weights(mask: Tensor, latents: Sequence[int], spans: Spans = whole, **settings: Any) -> Tensor:
    """The weights [...] of the first sample."""
    return compute(step_of(torch.zeros(len(mask), 2, *latents), mask), spans, **settings).weights["masked"][0, 0]


def bytes_of(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


@pytest.mark.parametrize("name", sorted(CASES))
def test_loss_and_gradient_are_those_of_the_reference(name: str) -> None:
    case = CASES[name]
    given = {key.split(".", 1)[1]: value for key, value in TENSORS.items() if key.startswith(f"{name}.")}
    latents, pixels = given["in.latents"], given.get("in.mask_pixels")
    kind = "segmentation" if case["mask_type"] == "segmentation" else "soft"
    mask = None
    if pixels is not None:  # in [-1, 1]: the reference takes the first channel of soft masks, and the mean of the others
        mask = 255 * (pixels[:, :1] if kind == "soft" else pixels.mean(dim=1, keepdim=True)).add(1).div(2)
    step = step_of(latents, mask)
    step.target = given["in.noise"] - latents
    step.prediction = given["in.prediction"].clone().requires_grad_()
    total = compute(step, thirds, table=LossTable(type=case["loss_type"]), type=kind).total
    total.backward()
    assert step.prediction.grad is not None
    assert total.item() == pytest.approx(case["loss"], abs=1e-6)
    torch.testing.assert_close(step.prediction.grad, given["out.grad_prediction"], rtol=0, atol=1e-6)


def test_every_kind_of_mask_of_the_reference_is_compared() -> None:
    kinds = {(case["mask_type"], len(case["latent_shape"])) for case in CASES.values()}
    assert kinds == {(None, 4), ("mask", 4), ("mask", 5), ("segmentation", 4), ("segmentation", 5)}


GREYS = bytes_of([[[[0, 0, 51, 51], [0, 0, 51, 51], [255, 255, 0, 0], [255, 255, 0, 1]]]])  # four latents of 2x2 pixels


def test_grey_counts_in_part() -> None:
    torch.testing.assert_close(weights(GREYS, (2, 2)), torch.tensor([[0.0, 0.2], [1.0, 1 / (4 * 255)]]))


def test_segmentation_counts_each_latent_in_full_that_anything_touches() -> None:
    assert weights(GREYS, (2, 2), type="segmentation").tolist() == [[0, 1], [1, 1]]


def test_the_background_counts_as_much_as_is_asked_for() -> None:
    found = weights(GREYS, (2, 2), background=0.25)
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.25 + 0.75 * 0.2], [1.0, 0.25 + 0.75 / (4 * 255)]]))


CLIP = torch.stack([torch.full((4, 4), 20 * frame, dtype=torch.uint8) for frame in range(9)])[None, None]  # frame k is 20 k


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ((range(1), range(1, 5), range(5, 9)), [0, 20 * 2.5, 20 * 6.5]),
        ((range(1, 5), range(5, 9)), [20 * 2.5, 20 * 6.5]),
        ((range(9),), [20 * 4]),
    ],
)
def test_a_latent_of_a_clip_counts_as_the_frames_that_it_stands_for(spans, expected) -> None:
    found = weights(CLIP, (len(spans), 2, 2), lambda frames: spans)
    torch.testing.assert_close(found, torch.tensor(expected)[:, None, None].expand(-1, 2, 2) / 255)


def test_segmentation_takes_a_latent_that_is_touched_in_one_of_its_frames() -> None:
    flash = torch.zeros_like(CLIP)
    flash[:, :, 3, 0, 0] = 1
    found = weights(flash, (3, 2, 2), lambda frames: (range(1), range(1, 5), range(5, 9)), type="segmentation")
    assert found.tolist() == [[[0, 0], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize("span", [range(1), range(4), range(1, 5)])
def test_a_picture_among_clips_is_one_frame_whatever_its_latent_stands_for(span: range) -> None:
    torch.testing.assert_close(weights(GREYS, (1, 2, 2), lambda frames: (span,))[0], weights(GREYS, (2, 2)))


def test_a_mask_of_one_frame_holds_for_all_frames_of_a_clip() -> None:
    step = step_of(torch.zeros(1, 2, 3, 2, 2), GREYS[:, :, None])
    loss = compute(step, lambda frames: (range(1), range(1, 5), range(5, 9)) if frames == 9 else (range(1),))
    expected = torch.tensor([[0.0, 0.2], [1.0, 1 / (4 * 255)]])
    assert loss.total.item() == pytest.approx(expected.mean().item())
    assert step.keep is not None
    assert step.keep.nonzero()[:, 1].tolist() == [2, 6, 10]


def test_by_area_a_small_mask_teaches_as_much_as_a_whole_picture() -> None:
    mask = torch.zeros((3, 1, 8, 8), dtype=torch.uint8)
    mask[0, :, :2, :2] = WHITE
    mask[1] = WHITE
    mask[2] = 1
    latents = torch.zeros(3, 2, 8, 8)
    plain = compute(step_of(latents, mask)).weights["masked"]
    scaled = compute(step_of(latents, mask), normalise_by_area=True).weights["masked"]
    torch.testing.assert_close(plain.mean(dim=(1, 2, 3)), torch.tensor([4 / 64, 1, 1 / 255]))
    torch.testing.assert_close(scaled.mean(dim=(1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(scaled[0], plain[0] * 16)


@pytest.mark.parametrize("by_area", [False, True])
def test_a_black_mask_teaches_nothing(by_area: bool) -> None:
    mask = bytes_of([[[[BLACK, BLACK]]], [[[BLACK, WHITE]]]])
    loss = compute(step_of(torch.zeros(2, 2, 1, 2), mask), normalise_by_area=by_area)
    assert loss.weights["masked"][:, 0, 0].tolist() == [[0, 0], [0, 2 if by_area else 1]]


@pytest.mark.parametrize("shape", [(3, 1, 33, 47), (3, 1, 9, 33, 47)])
@pytest.mark.parametrize("settings", [{}, {"normalise_by_area": True}, {"type": "segmentation", "background": 0.3}], ids=str)
def test_a_white_mask_changes_no_bit(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    latents = torch.randn(3, 2, *([3] if len(shape) == 5 else []), 5, 7, generator=torch.Generator().manual_seed(0))
    step = step_of(latents, torch.full(shape, WHITE, dtype=torch.uint8))
    step.prediction = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    plain = compute(step_of(latents, None))
    masked = compute(step, thirds, **settings)
    assert masked.weights["masked"].unique().tolist() == [1]
    assert torch.equal(masked.total, masked.elements.mean())
    assert plain.weights == {}
    assert step.keep is not None
    assert not step.keep.any()


def test_evaluation_and_batches_without_masks_are_left_alone() -> None:
    latents, mask = torch.zeros(1, 2, 1, 2), bytes_of([[[[BLACK, WHITE]]]])
    for step in (step_of(latents, mask, "eval"), step_of(latents, None)):
        loss = compute(step)
        assert loss.weights == {}
        assert step.keep is None
        assert step.metrics == {}


HALF = bytes_of([[[[BLACK, WHITE]]]]).expand(64, 1, 1, 2)


def drawn(position: int, seed: int = 0, probability: float = 0.25) -> list[bool]:
    """Which of 64 samples are masked; every other one counts everywhere."""
    step = step_of(torch.zeros(64, 2, 1, 2), HALF, position=position)
    found = compute(step, seed=seed, probability=probability).weights["masked"][:, 0, 0]
    assert bool((found[:, 1] == 1).all())
    assert set(found[:, 0].tolist()) <= {0, 1}
    assert step.metrics["masked_area"] == pytest.approx(float(found.mean()))
    return [value == 0 for value in found[:, 0].tolist()]


def test_each_sample_is_masked_as_often_as_is_asked_for() -> None:
    often = [one for position in range(40) for one in drawn(position)]
    assert sum(often) / len(often) == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / len(often)) ** 0.5)


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    assert drawn(3) == drawn(3)
    assert len({tuple(drawn(position, seed)) for position in range(3) for seed in range(3)}) == 9


def test_tokens_that_masks_show_are_kept_but_not_whole_samples() -> None:
    mask = torch.zeros((4, 1, 8, 8), dtype=torch.uint8)
    mask[0, 0, :4, 4:] = WHITE  # one token of four
    mask[0, 0, 4:, :4] = 127  # a token that counts less than half
    mask[1, 0, :, :] = WHITE
    mask[2, 0, :2, :4] = WHITE  # half a token
    mask[3, 0, :3, :4] = WHITE  # more than half of one
    step = step_of(torch.zeros(4, 2, 4, 4), mask)
    compute(step, patch=2)
    assert step.keep is not None
    assert step.keep.int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_tokens_of_a_clip_are_kept_in_their_own_frames_beside_what_was_kept() -> None:
    moving = torch.zeros((1, 1, 9, 4, 4), dtype=torch.uint8)
    moving[:, :, 5:, 2:, 2:] = WHITE
    step = step_of(torch.zeros(1, 2, 3, 2, 2), moving)
    step.keep = torch.arange(12)[None] < 1
    compute(step, lambda frames: (range(1), range(1, 5), range(5, 9)))
    assert step.keep.nonzero()[:, 1].tolist() == [0, 11]


def test_by_area_the_background_is_a_part_of_the_area() -> None:
    found = weights(GREYS, (2, 2), background=0.5, normalise_by_area=True)
    shares = 0.5 + 0.5 * torch.tensor([[0.0, 0.2], [1.0, 1 / (4 * 255)]])
    torch.testing.assert_close(found, shares / shares.mean())

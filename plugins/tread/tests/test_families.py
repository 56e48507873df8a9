"""What routes do, and what they leave alone, asked of every family without its name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.families.conftest import Case
from tunesmith import Step

from .conftest import Workshop, at_work, routes

HALF = routes((0.5, 1, -2))
"""Half of the tokens bypass the two inner blocks of a twin."""
EVERY_TOKEN = routes((0.001, 1, -2))
"""A route which, of so few tokens, keeps every one."""


def kept_by(step: Step, start: int = 1) -> Tensor:
    """The tokens that went through the route which starts at a block, [B, K]."""
    kept: Tensor = step.scratch["tread"][f"from block {start}"].kept
    return kept


def chosen(case: Case, step: Step, start: int = 1) -> Tensor:
    """The tokens that go through in this step."""
    with at_work(case, step) as predict:
        predict()
    return kept_by(step, start)


def watched(case: Case, step: Step) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The tokens that come to each block before any are taken out, those behind each, and the prediction."""
    before: list[Tensor] = []
    behind: list[Tensor] = []

    def come(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before.append(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        for entry in case.model.blocks:
            stack.callback(entry.module.register_forward_pre_hook(come, with_kwargs=True, prepend=True).remove)
            stack.callback(entry.module.register_forward_hook(lambda module, args, output: behind.append(output)).remove)
        with at_work(case, step) as predict:
            return before, behind, predict()


def test_a_route_that_keeps_every_token_changes_nothing(workshop: Workshop) -> None:
    plain, case, step = workshop.plain, workshop.case(EVERY_TOKEN), workshop.step()
    with at_work(plain, workshop.step()) as predict:
        expected = predict()
    with at_work(case, step) as predict:
        torch.testing.assert_close(predict(), expected, rtol=0, atol=1e-6)
    grid = case.model.token_grid(step.noisy)
    assert kept_by(step).tolist() == [list(range(grid.tokens))] * 2


def test_tokens_that_bypass_come_out_as_they_went_in_and_the_others_do_not(workshop: Workshop) -> None:
    case, step = workshop.case(HALF), workshop.step()
    before, behind, prediction = watched(case, step)
    kept, tokens = kept_by(step), case.model.token_grid(step.noisy).tokens
    assert kept.shape == (2, tokens - round(tokens / 2))
    assert behind[1].shape[1] == before[1].shape[1] - tokens + kept.shape[1]
    changed = (behind[2] != before[1]).any(dim=-1)
    through = torch.ones_like(changed)  # given conditions, which come last, go through
    through[:, :tokens] = torch.zeros(2, tokens, dtype=torch.bool).scatter(1, kept, True)
    assert torch.equal(changed, through)
    assert prediction.isfinite().all()


def test_tokens_are_drawn_by_seed_position_sample_and_route_alone(workshop: Workshop) -> None:
    both = routes((0.5, 1, 1), (0.5, 2, 2))
    case, again = workshop.case(both), workshop.case(both)
    steps = [workshop.step(position) for position in (3, 4)]
    first, later = (chosen(case, step) for step in steps)
    assert torch.equal(chosen(again, workshop.step(3)), first)  # as in a run that was resumed there
    assert not torch.equal(first, later)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, kept_by(steps[0], start=2))


def test_evaluation_previews_and_predictions_without_gradient_see_every_token(workshop: Workshop) -> None:
    plain, case = workshop.plain, workshop.case(HALF)
    evaluated, rolled_out = workshop.step(), workshop.step()
    evaluated.mode = "eval"
    for step in (evaluated, rolled_out):
        with at_work(plain, step) as predict, torch.set_grad_enabled(step is evaluated):
            expected = predict()
        with at_work(case, step) as predict, torch.set_grad_enabled(step is evaluated):
            assert torch.equal(predict(), expected)
    previewed = workshop.step()
    found, expected = (run.model.predict(previewed.noisy, previewed.sigma, previewed.batch) for run in (case, plain))
    assert torch.equal(found, expected)


def gradients(case: Case, step: Step) -> Mapping[str, Tensor]:
    """The gradient of every weight, of a loss as the core has it."""
    denoiser = case.model.denoiser
    denoiser.zero_grad(set_to_none=True)
    case.run.current = step
    case.run.hooks.compute_loss(case.run, step).total.backward()
    case.run.current = None
    return {name: weight.grad.clone() for name, weight in denoiser.named_parameters() if weight.grad is not None}


def test_blocks_computed_again_for_backward_see_the_same_tokens(workshop: Workshop) -> None:
    case = workshop.case(routes((0.5, 0, 1), (0.25, 2, 3)))
    case.model.denoiser.train()
    plain = gradients(case, workshop.step())
    case.model.denoiser.enable_gradient_checkpointing()
    again = gradients(case, workshop.step())
    assert plain.keys() == gradients(workshop.plain, workshop.step()).keys()
    assert all(value.isfinite().all() for value in plain.values())
    for name, value in plain.items():
        assert torch.equal(again[name], value), name


def test_the_gradient_is_the_slope_of_the_loss(workshop: Workshop) -> None:
    case = workshop.case(HALF)
    found = gradients(case, workshop.step())
    [first, *_] = case.model.blocks
    name, weight = next((name, one) for name, one in case.model.denoiser.named_parameters() if one is next(first.module.parameters()))
    direction = found[name] / found[name].norm()
    losses = []
    for distance in (1e-2, -1e-2):
        with torch.no_grad():
            weight.add_(distance * direction)
        step = workshop.step()
        case.run.current = step
        losses.append(case.run.hooks.compute_loss(case.run, step).total.item())
        case.run.current = None
        with torch.no_grad():
            weight.sub_(distance * direction)
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(found[name].norm().item(), rel=0.03)


def test_tokens_that_must_be_kept_are_and_the_whole_batch_keeps_as_many(workshop: Workshop) -> None:
    case, step = workshop.case(routes((0.75, 1, -2))), workshop.step()
    tokens = case.model.token_grid(step.noisy).tokens
    keep = torch.zeros(2, tokens, dtype=torch.bool)
    keep[0, : tokens // 2 + 1] = True
    keep[1, -1] = True
    step.keep_tokens(keep)
    kept = chosen(case, step)
    assert kept.shape == (2, tokens // 2 + 1)
    assert kept[0].tolist() == list(range(tokens // 2 + 1))
    assert tokens - 1 in kept[1]


def test_by_importance_alone_the_tokens_of_largest_norm_go_through(workshop: Workshop) -> None:
    case, step = workshop.case(f"[plugins.tread]\nimportance = 1.0\n{routes((0.5, 0, 1))}"), workshop.step()
    (entered, *_), _, _ = watched(case, step)
    tokens = case.model.token_grid(step.noisy).tokens
    norms = entered[:, :tokens].detach().double().abs().sum(dim=-1).numpy()
    largest = np.argsort(-norms, axis=1)[:, : tokens - round(tokens / 2)]
    assert kept_by(step, start=0).tolist() == np.sort(largest, axis=1).tolist()


def test_a_route_of_ratio_0_puts_nothing_into_the_model(workshop: Workshop) -> None:
    def hooks(case: Case) -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in case.model.denoiser.modules())

    assert hooks(workshop.case(routes((0.0, 1, -2)))) == hooks(workshop.plain)
    assert hooks(workshop.case(HALF)) > hooks(workshop.plain)


def test_under_autocast_tokens_keep_the_precision_that_the_blocks_give_them(workshop: Workshop) -> None:
    found = []
    for case in (workshop.plain, workshop.case(HALF)):
        with torch.autocast("cpu", torch.bfloat16):
            _, behind, prediction = watched(case, workshop.step())
        assert prediction.isfinite().all()
        prediction.square().mean().backward()
        found.append([output.dtype for output in behind])
    assert found[0] == found[1]

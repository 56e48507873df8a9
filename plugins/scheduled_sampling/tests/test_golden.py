"""Rollouts, solvers and the terms of ReflexFlow, beside numbers of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tunesmith_scheduled_sampling.reflexflow import drift_distance, frequency_weight
from tunesmith_scheduled_sampling.rollout import Solver, paths, rolled_out

from .conftest import FACTS, GOLDEN, LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, Bench, settings, step_at, toy

LAST = 999
"""The reference counts 999 steps from sigma 0 to 1, and tells its model the number of the step."""
EVERYWHERE = torch.ones(1, 1, 1, 1, 1)


def counted(noisy: Tensor, sigma: Tensor) -> Tensor:
    return toy(noisy, LAST * sigma)


def test_samples_with_different_numbers_of_unit_steps_end_where_the_reference_ends() -> None:
    target, source = GOLDEN["flow.in.target_timesteps"], GOLDEN["flow.in.source_timesteps"]
    sigma, calls = target / LAST, []

    def velocity(noisy: Tensor, level: Tensor) -> Tensor:
        calls.append(level)
        return counted(noisy, level)

    ways = paths(sigma.tolist(), (source - target).tolist(), 1.0, LAST)
    assert [len(way) - 1 for way in ways] == [5, 0, 12, 3]
    noisy = GOLDEN["flow.in.noisy_latents"]
    found = rolled_out(velocity, LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, noisy, sigma, ways, Solver())
    torch.testing.assert_close(found, GOLDEN["flow.out.noisy_latents"], rtol=0, atol=1e-5)
    assert torch.equal(found[1], noisy[1])
    assert len(calls) == 12 < FACTS["flow"]["flow"]["model_calls"]  # the whole batch at once, and not one sample after the other


@pytest.mark.parametrize(("name", "order"), [("euler", 2), ("unipc", 2), ("unipc", 3)])
@pytest.mark.parametrize("case", FACTS["flow_solver_reference"])
def test_solvers_follow_the_reference(case: str, name: str, order: int) -> None:
    path = FACTS["flow_solver_reference"][case]["sigmas"]
    start, expected = GOLDEN[f"flowsolver.{case}.in.x"], GOLDEN[f"flowsolver.{case}.out.{name}{order if name == 'unipc' else ''}"]
    noise = (start - (1 - path[0]) * LATENTS_OF_GOLDEN) / path[0]  # what leads from the latents to this start
    found = rolled_out(
        lambda noisy, sigma: toy(noisy, 1000 * sigma),
        LATENTS_OF_GOLDEN,
        noise,
        start,
        torch.full((4,), path[-1]),
        [path] * 4,
        Solver(name, order),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", FACTS["reflexflow"])
def test_the_terms_of_reflexflow_are_those_of_the_reference_with_their_gradient(case: str) -> None:
    facts = FACTS["reflexflow"][case]
    alpha, beta1, beta2 = (facts["settings"][f"scheduled_sampling_reflexflow_{name}"] for name in ("alpha", "beta1", "beta2"))
    clean, biased, noisy = (GOLDEN[f"flow_reflex.out.{name}"] for name in ("clean_pred", "biased_pred", "noisy_latents"))
    prediction = GOLDEN["reflexflow.in.prediction"].clone().requires_grad_()
    elements = (prediction - (NOISE_OF_GOLDEN - LATENTS_OF_GOLDEN)).square()
    flow = (beta2 * frequency_weight(clean, biased, EVERYWHERE, alpha) * elements).mean()
    loss = flow + beta1 * drift_distance(prediction, noisy, LATENTS_OF_GOLDEN, EVERYWHERE)
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], abs=1e-4)
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad, GOLDEN[f"reflexflow.{case}.grad"], rtol=0, atol=1e-5)


def test_the_plugin_asks_for_the_clean_and_the_biased_prediction_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    target, source = GOLDEN["flow_reflex.in.target_timesteps"], GOLDEN["flow_reflex.in.source_timesteps"]
    bench = Bench(settings(probability=1.0, max_steps=12, sampling_steps=LAST, target="constant", reflexflow={}), counted)
    timestep = torch.where(source > target, target, GOLDEN["flow_reflex.in.timesteps_float"])
    step = step_at(timestep / LAST)
    step.noisy = GOLDEN["flow_reflex.in.noisy_latents"]
    ways = paths((target / LAST).tolist(), (source - target).tolist(), 1.0, LAST)
    monkeypatch.setattr(bench.plugin, "_ways", lambda run, step: ways)
    loss = bench.compute(step)
    torch.testing.assert_close(step.noisy, GOLDEN["flow_reflex.out.noisy_latents"], rtol=0, atol=1e-5)
    told = step.scratch["scheduled_sampling"]
    torch.testing.assert_close(told["biased"], GOLDEN["flow_reflex.out.biased_pred"], rtol=0, atol=1e-5)
    rolled = [0, 2, 3]  # of which the reference asks the clean prediction at a fraction of a step more
    torch.testing.assert_close(told["clean"][rolled], GOLDEN["flow_reflex.out.clean_pred"][rolled], rtol=0, atol=1e-3)
    assert torch.equal(told["clean"][1], told["biased"][1])
    assert torch.equal(loss.weights["scheduled_sampling"][1], torch.ones_like(step.noisy[1]))
    assert torch.equal(step.target, NOISE_OF_GOLDEN - LATENTS_OF_GOLDEN)


@pytest.mark.parametrize("offsets", FACTS["offset_histogram_max10"])
def test_numbers_of_steps_are_as_likely_as_in_the_reference(offsets: str) -> None:
    chosen = settings(max_steps=10, offsets=offsets)
    np.testing.assert_allclose(chosen.chances, FACTS["offset_histogram_max10"][offsets], atol=0.002)
    assert sum(chosen.chances) == pytest.approx(1)


@pytest.mark.parametrize("offsets", ["uniform", "biased_early", "biased_late"])
def test_numbers_of_steps_are_drawn_as_likely_as_told(offsets: str) -> None:
    bench = Bench(settings(probability=1.0, max_steps=10, offsets=offsets, sampling_steps=1000))
    drawn = []
    for position in range(3000):
        step = step_at(torch.tensor([0.3]), position)
        ways = bench.plugin._ways(bench.run, step)
        drawn.append(len(ways[0]) - 1 if ways else 0)
    found = np.bincount(drawn, minlength=11) / len(drawn)
    np.testing.assert_allclose(found, FACTS["offset_histogram_max10"][offsets], atol=0.03)
    assert np.mean(drawn) == pytest.approx(bench.settings.expected_steps, abs=0.25)

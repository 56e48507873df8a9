"""Where samples start, how they come down together, and what is left alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tunesmith import mix
from tunesmith_scheduled_sampling.rollout import Solver, paths, rolled_out

from .conftest import LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, toy


def towards(latents: Tensor, noise: Tensor) -> Tensor:
    """The velocity of a model that makes no mistake."""
    return noise - latents


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_are_those_of_sampling_at_the_same_shift(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[number / 20 for number in range(20, 0, -1)])
    sampling = scheduler.sigmas[:-1].tolist()
    [way] = paths([sampling[9]], [4], shift, 20)
    assert way == pytest.approx(sampling[5:10], abs=1e-6)
    assert way[-1] == sampling[9]


def test_no_sample_starts_beyond_sigma_1() -> None:
    ways = paths([0.97, 0.9, 1.0, 0.2], [4, 4, 4, 0], 1.0, 20)
    assert ways[0] == [1.0, 0.97]
    assert ways[1] == pytest.approx([1.0, 0.95, 0.9])
    assert ways[2:] == [[1.0], [0.2]]


def test_a_step_that_is_hardly_one_is_not_made() -> None:
    [way] = paths([0.9 - 1e-7], [3], 1.0, 20)
    assert way == pytest.approx([1.0, 0.95, 0.9], abs=1e-6)
    assert min(earlier - later for earlier, later in pairwise(way)) > 0.04


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_a_model_without_mistakes_does_not_drift(solver: str) -> None:
    sigma = torch.tensor([0.0, 0.5, 0.98, 0.2])
    noisy = mix(LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, sigma)[0]
    velocity = towards(LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN)
    ways = paths(sigma.tolist(), [4, 2, 4, 0], 3.0, 10)
    found = rolled_out(lambda *_: velocity, LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, noisy, sigma, ways, Solver(solver))
    torch.testing.assert_close(found, noisy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_a_sample_is_rolled_out_as_if_it_were_alone(solver: str) -> None:
    sigma = torch.tensor([0.1, 0.5, 0.95, 0.3])
    noisy = mix(LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, sigma)[0]
    ways = paths(sigma.tolist(), [5, 0, 5, 2], 2.0, 12)

    def velocity(noisy: Tensor, level: Tensor) -> Tensor:
        return toy(noisy, 1000 * level)

    together = rolled_out(velocity, LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, noisy, sigma, ways, Solver(solver))
    for row in range(4):
        one = slice(row, row + 1)
        alone = rolled_out(velocity, LATENTS_OF_GOLDEN[one], NOISE_OF_GOLDEN[one], noisy[one], sigma[one], ways[one], Solver(solver))
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-6)
    assert torch.equal(together[1], noisy[1])


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_a_given_frame_stays_what_it_is_and_is_told_as_given(solver: str) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, 4, 3, 2, 2, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.2, 0.6]).reshape(2, 1, 1, 1, 1).repeat(1, 1, 3, 1, 1)
    sigma[:, :, 0] = 0
    told = []

    def velocity(noisy: Tensor, level: Tensor) -> Tensor:
        told.append(level)
        assert torch.equal(noisy[:, :, 0], latents[:, :, 0])
        return noisy.roll(1, dims=2)  # what the first frame is moves the others

    ways = paths([0.2, 0.6], [3, 3], 1.0, 10)
    found = rolled_out(velocity, latents, noise, mix(latents, noise, sigma)[0], sigma, ways, Solver(solver))
    assert torch.equal(found[:, :, 0], latents[:, :, 0])
    assert not torch.allclose(found[:, :, 1], mix(latents, noise, sigma)[0][:, :, 1])
    assert all(level.shape == sigma.shape and not level[:, :, 0].any() for level in told)
    levels = torch.stack([level[:, 0, 1:, 0, 0] for level in told])  # [step, B, F - 1]
    torch.testing.assert_close(levels[..., 0], torch.tensor([[0.5, 0.9], [0.4, 0.8], [0.3, 0.7]]))
    assert torch.equal(levels[..., 0], levels[..., 1])


def test_solvers_keep_their_precision_under_autocast() -> None:
    sigma = torch.full((4,), 0.2)
    noisy = mix(LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, sigma)[0]
    ways, velocity = paths(sigma.tolist(), [5] * 4, 1.0, 10), towards(LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN) * 1.1
    inputs = (LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, noisy, sigma, ways, Solver("unipc"))
    plain = rolled_out(lambda noisy, level: velocity * level[:, None, None, None, None], *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = rolled_out(lambda noisy, level: velocity * level[:, None, None, None, None], *inputs)
    assert torch.equal(found, plain)

"""Draws depend on the seed, the purpose and the position, and on nothing else."""

import torch

from tunesmith.randomness import numpy_generator, position_seed, torch_generator


def test_the_same_position_gives_the_same_draw_whatever_came_before():
    first = torch.randn(5, generator=torch_generator(3, "noise", 10, 2))
    torch.randn(1000)
    torch.randn(7, generator=torch_generator(3, "noise", 10, 1))
    assert torch.equal(first, torch.randn(5, generator=torch_generator(3, "noise", 10, 2)))
    assert numpy_generator(3, "sigma", 1).random() == numpy_generator(3, "sigma", 1).random()


def test_seed_purpose_and_every_part_of_the_position_count():
    seeds = {
        position_seed(0, "noise", 1, 2),
        position_seed(1, "noise", 1, 2),
        position_seed(0, "sigma", 1, 2),
        position_seed(0, "noise", 2, 1),
        position_seed(0, "noise", 12),
        position_seed(0, "noise", 1, "2x"),
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_positions_are_uncorrelated():
    draws = torch.stack([torch.randn(4096, generator=torch_generator(0, "noise", position)) for position in range(16)])
    correlation = torch.corrcoef(draws) - torch.eye(16)
    assert correlation.abs().max() < 0.08  # five standard deviations of the correlation of independent draws

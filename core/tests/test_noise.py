"""Sigma densities and shifts against recorded reference numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tunesmith.config.tables import NoiseTable
from tunesmith.noise import SigmaSampler, auto_shift, logit_normal, shift_sigma
from tunesmith.randomness import numpy_generator

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "flow_matching.json").read_text())
TENSORS = load_file(GOLDEN / "flow_matching.safetensors")


@pytest.mark.parametrize("table", [row for row in FACTS["shift_table"] if row["shift"]], ids=lambda row: str(row["shift"]))
def test_shift_equals_the_recorded_table(table):
    shifted = shift_sigma(np.array(table["u"]), table["shift"])
    np.testing.assert_allclose(shifted, table["sigma"], atol=1e-9)


@pytest.mark.parametrize("row", FACTS["auto_shift"], ids=lambda row: str(row["seq_len"]))
def test_auto_shift_without_clamp_equals_the_recorded_numbers(row):
    assert auto_shift(row["seq_len"], clamp=False) == pytest.approx(row["shift"], rel=1e-9)
    np.testing.assert_allclose(shift_sigma(np.array(row["u"]), auto_shift(row["seq_len"], clamp=False)), row["sigma"], atol=1e-9)


def test_auto_shift_with_clamp_stays_at_the_ends_of_its_range():
    assert auto_shift(32760, clamp=True) == auto_shift(4096, clamp=True) == pytest.approx(np.exp(1.15))
    assert auto_shift(16, clamp=True) == auto_shift(256, clamp=True) == pytest.approx(np.exp(0.5))


@pytest.mark.parametrize(
    ("case", "scale", "shift"),
    [("sigmoid", 1.0, 1.0), ("sigmoid_shift3", 1.0, 3.0), ("sigmoid_scale_half_shift5", 0.5, 5.0)],
)
def test_logit_normal_draws_equal_the_recorded_ones(case, scale, shift):
    raw = TENSORS[f"sampling.{case}.raw"].double().numpy()
    expected = TENSORS[f"sampling.{case}.sigmas"].double().numpy()
    np.testing.assert_allclose(shift_sigma(logit_normal(raw, scale, 0.0), shift), expected, atol=1e-6)


def test_uniform_draws_equal_the_recorded_ones():
    raw = TENSORS["sampling.uniform_shift3.raw"].double().numpy()
    np.testing.assert_allclose(shift_sigma(raw, 3.0), TENSORS["sampling.uniform_shift3.sigmas"].double().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("table", "mean", "spread"),
    [
        (NoiseTable(shift="none"), 0.5, 0.208),  # the logit-normal distribution has no closed form; 0.208 by quadrature
        (NoiseTable(shift="none", distribution="uniform"), 0.5, 12**-0.5),
        (NoiseTable(shift="none", distribution="beta"), 0.5, 20**-0.5),
        (NoiseTable(shift="none", distribution="beta", alpha=1.0, beta=3.0), 0.25, (3 / 80) ** 0.5),
    ],
)
def test_draws_have_the_moments_of_their_density(table, mean, spread):
    draws = SigmaSampler(table, None).draw(numpy_generator(0, "test"), 200_000, 256)
    assert draws.mean() == pytest.approx(mean, abs=5e-3)
    assert draws.std() == pytest.approx(spread, abs=5e-3)
    assert draws.min() >= 0
    assert draws.max() <= 1


def test_offset_moves_the_density_to_more_noise():
    middle = np.median(SigmaSampler(NoiseTable(shift="none", offset=1.0), None).draw(numpy_generator(0, "test"), 50_000, 1))
    assert middle == pytest.approx(1 / (1 + np.exp(-1)), abs=5e-3)


def test_the_shift_is_the_checkpoints_unless_the_config_says_otherwise():
    assert SigmaSampler(NoiseTable(), 3.0).shift(1024) == 3.0
    assert SigmaSampler(NoiseTable(), None).shift(1024) == 1.0
    assert SigmaSampler(NoiseTable(shift="none"), 3.0).shift(1024) == 1.0
    assert SigmaSampler(NoiseTable(shift=5.0), 3.0).shift(1024) == 5.0
    assert SigmaSampler(NoiseTable(shift="auto"), 3.0).shift(4096) == pytest.approx(np.exp(1.15))


def test_position_alone_decides_a_draw():
    sampler = SigmaSampler(NoiseTable(), None)
    first = sampler.draw(numpy_generator(1, "sigma", 7), 4, 64)
    sampler.draw(numpy_generator(1, "sigma", 8), 4, 64)
    assert torch.equal(torch.from_numpy(first), torch.from_numpy(sampler.draw(numpy_generator(1, "sigma", 7), 4, 64)))

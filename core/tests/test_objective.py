"""The flow-matching mixture and the distances against recorded reference numbers and float64."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.config.tables import LossTable
from tunesmith.objective import distance, mix

GOLDEN = Path(__file__).parent / "golden"
LOSSES = json.loads((GOLDEN / "flow_matching.json").read_text())["losses"]
TENSORS = load_file(GOLDEN / "flow_matching.safetensors")
TABLES = {
    "l2": LossTable(),
    "huber": LossTable(type="huber"),
    "smooth_l1": LossTable(type="smooth_l1"),
    "huber_exponential": LossTable(type="huber", huber_schedule="exponential"),
    "huber_snr": LossTable(type="huber", huber_schedule="snr"),
}


def test_noisy_latents_and_target_equal_the_recorded_ones():
    noisy, target = mix(TENSORS["loss.in.latents"], TENSORS["loss.in.noise"], TENSORS["loss.in.sigmas"])
    torch.testing.assert_close(noisy, TENSORS["loss.mid.noisy_latents"], atol=1e-6, rtol=0)
    torch.testing.assert_close(target, TENSORS["loss.target"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", TABLES)
def test_loss_and_gradient_equal_the_recorded_ones(case):
    prediction = TENSORS["loss.in.prediction"].clone().requires_grad_()
    loss = distance(prediction, TENSORS["loss.target"], TENSORS["loss.in.sigmas"], TABLES[case]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(LOSSES[case]["loss"], abs=1e-5)
    torch.testing.assert_close(prediction.grad, TENSORS[f"loss.{case}.grad"], atol=1e-6, rtol=0)


def test_sigma_may_differ_by_frame():
    latents, noise = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 4, 5, 5)
    sigma = torch.rand(2, 1, 4, 1, 1)
    sigma[:, :, 0] = 0
    noisy, _ = mix(latents, noise, sigma)
    assert torch.equal(noisy[:, :, 0], latents[:, :, 0])
    expected = latents[1, :, 2].double() * (1 - sigma[1, 0, 2, 0, 0].double()) + noise[1, :, 2].double() * sigma[1, 0, 2, 0, 0].double()
    torch.testing.assert_close(noisy[1, :, 2].double(), expected, atol=1e-6, rtol=0)

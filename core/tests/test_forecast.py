"""What the optimizer takes, as a forecast has it: found by steps that it makes here, and meant for the device of the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tunesmith.config import Config
from tunesmith.config.tables import OptimizerTable
from tunesmith.forecast import optimizer_rates
from tunesmith.understudies import OptimizerBytes

BLOCK = 256
"""Values that bitsandbytes quantises together, with one fp32 number for each moment."""


def taken(kind: str, device: str, **more: Any) -> OptimizerBytes:
    """Bytes for each weight in fp32 with this optimizer on this device."""
    run = SimpleNamespace(device=device, weights="fp32")
    table = OptimizerTable.model_validate({"type": kind, **more})
    settings = SimpleNamespace(optimizer=table, run=run, device=torch.device(device), is_for_cpu=device == "cpu")
    rates = optimizer_rates(cast(Config, settings))
    assert rates is not None
    return rates[torch.float32, None]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_kernel_of_an_8_bit_optimizer_that_is_written_of_other_operations_on_the_cpu_counts_as_one(device):
    pytest.importorskip("bitsandbytes")
    found = taken("adamw8bit", device)
    assert found.state == 2 + 2 * 4 / BLOCK
    assert (found.update, found.at_once) == (0, False)


def test_what_torch_updates_at_once_on_a_gpu_alone_counts_there_and_for_all_weights():
    on_cpu = taken("nadam", "cpu")
    on_gpu = taken("nadam", "cuda")
    assert on_cpu.state == on_gpu.state
    assert (on_cpu.at_once, on_gpu.at_once) == (False, True)
    assert on_gpu.update >= 4  # a root of the second moment of each weight
    assert taken("nadam", "cuda", foreach=False) == on_cpu


def test_what_is_left_of_one_weight_while_the_next_is_updated_is_not_taken_for_all_at_once():
    found = taken("rmsprop", "cpu")
    assert (found.update, found.at_once) == (2 * 4, False)
    assert (taken("rmsprop", "cuda").update, taken("rmsprop", "cuda").at_once) == (4, True)


def test_weights_that_are_updated_in_backward_are_updated_one_by_one():
    together = taken("nadam", "cuda")
    one_by_one = taken("nadam", "cuda", fused_backward_pass=True, clip_norm=False)
    assert (together.at_once, one_by_one.at_once) == (True, False)
    assert one_by_one.update == pytest.approx(together.update, rel=0.01)

"""A refactor changes no loss: twenty steps of each tiny twin, full and LoRA, against a recorded trace.

On the kind of machine that the trace was recorded on, a single bit that moves fails with its step; elsewhere, where
kernels sum in another order, the losses must agree to a thousandth. A change that is meant to move them records anew:
`TUNESMITH_RECORD=1 python -m pytest tests/runs/test_trace.py`.
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from .conftest import LORA, Result

TRACES = Path(__file__).parent / "traces.json"
SETTINGS = (
    "datasets.0.name='pictures'",
    "run.steps=20",
    "run.gradient_accumulation=2",
    "validation.at_start=false",
    "validation.at_end=false",
)


def machine() -> str:
    """What decides the last bits of a sum: the processor and torch's build for it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


@pytest.mark.parametrize(("name", "extra"), [("full", ""), ("lora", LORA)])
def test_no_bit_of_the_recorded_losses_moves(train, name, extra):
    assert_as_recorded(name, train(name, extra, *SETTINGS))


def assert_as_recorded(name: str, result: Result) -> None:
    """The losses of a run of twenty steps are those of the trace of this name."""
    losses = [result.losses[step] for step in range(1, 21)]
    recorded = json.loads(TRACES.read_text()) if TRACES.exists() else {}
    if os.environ.get("TUNESMITH_RECORD"):
        recorded = {**recorded, "machine": machine(), name: [loss.hex() for loss in losses]}
        TRACES.write_text(json.dumps(recorded, indent=1) + "\n")
    expected = [float.fromhex(loss) for loss in recorded[name]]
    assert losses == pytest.approx(expected, rel=1e-3)
    if recorded["machine"] == machine():
        moved = [step for step, (found, wanted) in enumerate(zip(losses, expected, strict=True), 1) if found != wanted]
        assert not moved, f"the loss moved first at step {moved[0]}: {losses[moved[0] - 1].hex()} instead of {recorded[name][moved[0] - 1]}"

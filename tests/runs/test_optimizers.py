"""Optimizers of torch and of other libraries, by name and by import path: each trains, and goes on exactly where it was."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.config import ConfigErrors
from tunesmith.config.optimizers import NAMED

from .conftest import LORA, Result

QUIET = ("run.steps=3", "checkpoints.every=1", "validation.at_start=false", "validation.at_end=false", 'optimizer.schedule="constant"')
BY_PATH = ("adamw", "muon", "rmsprop", "optimi.RAdam", "bitsandbytes.optim.SGD8bit")
RATES = {"prodigy": 1.0, "sgd_schedulefree": 1.0}
"""Learning rates where 1e-3 is far from what the optimizer is made for."""
ARGUMENTS = {"bitsandbytes.optim.SGD8bit": "momentum=0.9", "radam_schedulefree": "silent_sgd_phase=false"}
"""What an optimizer must be given, or needs so that it moves in its first steps."""


def settings(kind: str) -> tuple[str, ...]:
    arguments = (f"optimizer.{ARGUMENTS[kind]}",) if kind in ARGUMENTS else ()
    return (*QUIET, f"optimizer.type={kind!r}", f"optimizer.lr={RATES.get(kind, 1e-3)}", *arguments)


def kept(result: Result, step: int) -> dict[str, Tensor]:
    """What the run goes on from."""
    return load_file(result.path / f"checkpoints/step-{step:06d}/training/weights.safetensors")


@pytest.mark.parametrize("kind", [*NAMED, *BY_PATH])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_it_trains_and_resumes_exactly(train, kind):
    whole = train("whole", LORA, *settings(kind))
    parts = train("parts", LORA, *settings(kind), resume=str(whole.path / "checkpoints/step-000001"))
    assert parts.losses == {step: loss for step, loss in whole.losses.items() if step > 1}
    first, second, before = kept(whole, 3), kept(parts, 3), kept(whole, 1)
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    assert any(not torch.equal(first[name], before[name]) for name in first)


def test_what_is_saved_and_shown_of_a_schedule_free_run_is_its_average(train):
    """Weights y that are trained at, z that steps are made of, x = y + (1 - 1 / beta) (z - y) to use (2405.15682)."""
    result = train("free", LORA, *settings("adamw_schedulefree"))
    state = torch.load(result.path / "checkpoints/step-000003/training/state.pt", weights_only=True)["optimizer"]["state"]
    exported = load_file(result.path / "final/pytorch_lora_weights.safetensors")
    trained = kept(result, 3)
    assert len(trained) == len(state)
    for number, (name, y) in enumerate(sorted_by_layer(trained)):
        z = state[number]["z"]
        x = y.double() + (1 - 1 / 0.9) * (z.double() - y.double())
        told = exported[name.replace("denoiser.", "transformer.").replace(".default", "")]
        torch.testing.assert_close(told.double(), x, rtol=0, atol=1e-7)
        if bool((z != y).any()):
            assert not torch.equal(told, y)


def sorted_by_layer(weights: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """In the order in which an optimizer numbers them: block by block, and in each of its layers first A, then B."""
    layers = ("to_q", "to_k", "to_v", "to_out.0")

    def place(name: str) -> tuple[int, int, int, int]:
        parts = name.split(".")
        layer = next(number for number, one in enumerate(layers) if f".{one}.lora_" in name)
        return int(parts[2]), int(parts[3][-1]), layer, "lora_B" in name

    return sorted(weights.items(), key=lambda item: place(item[0]))


def test_a_name_that_nearly_is_one_and_a_library_that_is_missing_are_told(train, monkeypatch):
    with pytest.raises(ConfigErrors, match="did you mean 'adamw8bit'"):
        train("misspelt", LORA, "optimizer.type='adamw8bits'")
    monkeypatch.setitem(__import__("sys").modules, "optimi", None)
    with pytest.raises(ConfigErrors, match="pip install torch-optimi"):
        train("missing", LORA, "optimizer.type='stableadamw'")

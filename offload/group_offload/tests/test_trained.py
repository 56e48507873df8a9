"""Training every weight, with blocks that are at home on the machine: weights, gradients and optimizer state are those of a run without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.matrix.conftest import Matrix
from tests.matrix.stage import FAMILIES
from tests.runs.conftest import Result
from tunesmith import Loss, Run, Step
from tunesmith.config.tables import OptimizerTable
from tunesmith.engine import Engine
from tunesmith.hooks import HookCaller
from tunesmith.live import LiveTensors
from tunesmith_group_offload.groups import Group
from tunesmith_group_offload.schedule import Schedule
from tunesmith_sana import SanaFamily

from .conftest import SAMPLES, Runner
from .pretended import Device

OFFLOAD = "[plugins.group_offload]\n"
FEATURES = frozenset({"checkpointing", "accumulation", "crepa", "scheduled_sampling"})
"""Activation checkpointing; two backward passes a step; a projector that is trained beside the model; predictions without gradients."""
EMA = "[plugins.ema]\ndecay = 0.9\n"


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("families"))


def steps(result: Result) -> list[dict[str, Any]]:
    """What was told of each step but how long it took."""
    told = [event for event in result.events if event["event"] == "step"]
    return [{key: event[key] for key in ("step", "loss", "loss_crepa", "gradient_norm", "learning_rate")} for event in told]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_a_full_run_that_is_resumed_is_that_of_the_run_without(matrix: Matrix, family: str, forgetful: Device) -> None:
    settings = ("optimizer.lr_of.crepa=1e-2", "optimizer.clip_norm=0.1")
    plain, _ = matrix.train(family, FEATURES, "plain", EMA, *settings)
    matrix.train(family, FEATURES, "moved", EMA + OFFLOAD, *settings, "run.steps=2")
    moved, _ = matrix.train(family, FEATURES, "moved", EMA + OFFLOAD, *settings)
    assert steps(moved) == steps(plain)
    assert len(steps(moved)) == 3
    assert forgetful.schedule.most_here == 1
    for step in (1, 3):
        expected, found = plain.weights(step), moved.weights(step)
        assert [name for name in expected | found if not torch.equal(expected[name], found[name])] == []
    assert any(name.startswith("ema/") for name in moved.weights(3))


def test_layers_of_a_full_run_come_and_go_like_blocks(train: Runner, plain: Runner, forgetful: Device) -> None:
    expected, moved = plain("", SAMPLES), train(f"{OFFLOAD}level = 'leaf'\n", SAMPLES)
    assert moved.losses == expected.losses
    assert moved.pictures(3) == expected.pictures(3)


def test_a_prediction_with_gradients_between_backward_and_update_changes_nothing(
    train: Runner, plain: Runner, forgetful: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backward begins with the last group, which therefore stays on the device after forward; of this one there is no backward."""
    expected = plain("", SAMPLES)
    seen: list[tuple[Run, Step]] = []
    compute, clip = HookCaller.compute_loss, Engine.clip

    def remembered(hooks: HookCaller, run: Run, step: Step) -> Loss:
        seen.append((run, step))
        return compute(hooks, run, step)

    def predicted(engine: Engine, table: OptimizerTable) -> torch.Tensor:
        run, step = seen[-1]
        assert run.model.predict(step.noisy, step.sigma, step.batch).requires_grad
        return clip(engine, table)

    monkeypatch.setattr(HookCaller, "compute_loss", remembered)
    monkeypatch.setattr(Engine, "clip", predicted)
    moved = train(OFFLOAD)
    assert len(seen) == 3
    assert moved.losses == expected.losses
    assert all(torch.equal(value, moved.weights(3)[name]) for name, value in expected.weights(3).items())


def test_a_weight_that_two_blocks_or_a_block_and_the_rest_share_stays_on_the_device(
    train: Runner, forgetful: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tie(denoiser: Any) -> None:
        blocks = denoiser.transformer_blocks
        blocks[0].attn1.to_q.weight = blocks[2].attn1.to_q.weight
        blocks[1].attn1.to_k.weight = denoiser.caption_projection.linear_2.weight

    adapter = "[plugins.lora]\nrank = 2\n"
    monkeypatch.setattr(SanaFamily, "prepare", staticmethod(tie))
    expected = train(adapter)
    moved = train(adapter + OFFLOAD)
    assert moved.losses == expected.losses
    sizes = [sum(tensor.numel() for tensor in group.tensors) for group in forgetful.schedule.groups]
    assert [sizes[3] - size for size in sizes] == [32 * 32] * 3 + [0]


def test_an_average_survives_a_sample_that_fails_while_groups_are_away(
    train: Runner, plain: Runner, forgetful: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its values stand in for the weights then, at home, and must not be brought back later by a group that stayed away."""

    def fail(group: Group) -> None:
        if not torch.is_grad_enabled() and group is forgetful.schedule.groups[2]:
            raise RuntimeError("no memory")
        wait(group)

    wait = Group.wait
    monkeypatch.setattr(Group, "wait", fail)
    moved = train(f"[plugins.ema]\n{OFFLOAD}", "validation.every=1")
    assert "warning" in {event["event"] for event in moved.events}
    assert moved.losses == plain("", SAMPLES).losses


def test_half_precision_copies_of_trained_weights_go_with_their_group(train: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise autocast keeps those of all blocks on the device until the whole forward has ended."""

    def growth() -> int:
        """Bytes that are alive at the end of a forward and were not before its first block."""
        told: list[int] = []
        with monkeypatch.context() as patch, LiveTensors() as counted:
            enter, end = Schedule._enter, Schedule._end

            def entered(schedule: Schedule, number: int, *arguments: Any) -> None:
                if number == 0:
                    told.append(counted.live)
                enter(schedule, number, *arguments)

            def ended(schedule: Schedule, *arguments: Any) -> None:
                told.append(counted.live)
                end(schedule, *arguments)

            patch.setattr(Schedule, "_enter", entered)
            patch.setattr(Schedule, "_end", ended)
            train(OFFLOAD, "run.precision='bf16'", "run.steps=1")
        before, after, *_ = told
        return after - before

    freed = growth()
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    kept = growth()
    assert kept > 40_000 > freed  # the copies of four blocks, at the least

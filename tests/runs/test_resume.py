"""A resumed run is the run that was never interrupted, bit for bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tunesmith import InputError

from .conftest import LORA, Result, config_text

EVERY_TWO = "[checkpoints]\nevery = 2\n"


def assert_same_run(straight: Result, resumed: Result, step: int) -> None:
    assert resumed.losses == straight.losses
    expected, found = straight.weights(step), resumed.weights(step)
    assert sorted(found) == sorted(expected)
    differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert differing == []
    assert resumed.pictures(step) == straight.pictures(step)


@pytest.mark.parametrize("extra", ["", LORA], ids=["full", "lora"])
@pytest.mark.parametrize("overrides", [(), ("run.gradient_accumulation=3",), ("run.cache=false",), ("run.precision='bf16'",)], ids=str)
def test_stop_and_resume_equals_never_stopping(train, monkeypatch, extra, overrides):
    straight = train("straight", extra + EVERY_TWO, *overrides)
    from tunesmith.trainer import Trainer

    milestones = Trainer.milestones

    def interrupted(self):
        milestones(self)
        if self.run.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "milestones", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("resumed", extra + EVERY_TWO, *overrides)
    monkeypatch.setattr(Trainer, "milestones", milestones)
    assert_same_run(straight, train("resumed", extra + EVERY_TWO, *overrides), 6)


def test_a_killed_process_goes_on_bit_for_bit(train, tmp_path, twin, pictures):
    straight = train("straight", LORA + EVERY_TWO, "run.steps=40", "validation.at_start=false")
    config = tmp_path / "killed.toml"
    config.write_text(config_text(twin, pictures, LORA + EVERY_TWO))
    command = [
        sys.executable,
        "-m",
        "tunesmith",
        "run",
        str(config),
        "--set",
        "run.steps=40",
        "--set",
        "validation.at_start=false",
        "--quiet",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoints = tmp_path / "runs" / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_same_run(straight, train("killed", LORA + EVERY_TWO, "run.steps=40", "validation.at_start=false"), 40)


def test_a_signal_finishes_the_step_saves_and_goes_on(train, tmp_path, twin, pictures):
    straight = train("straight", LORA, "run.steps=200", "validation.at_start=false", "validation.at_end=false")
    config = tmp_path / "signalled.toml"
    config.write_text(config_text(twin, pictures, LORA))
    overrides = ["run.steps=200", "validation.at_start=false", "validation.at_end=false"]
    command = [sys.executable, "-m", "tunesmith", "run", str(config), *(part for one in overrides for part in ("--set", one))]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    events = tmp_path / "runs" / "signalled" / "events.jsonl"
    deadline = time.monotonic() + 120
    while not (events.exists() and '"event": "step"' in events.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "the same command goes on from there" in told
    resumed = train("signalled", LORA, *overrides)
    assert resumed.losses == straight.losses


def test_a_damaged_checkpoint_is_passed_over_and_left_alone(train):
    first = train("damaged", LORA + EVERY_TWO, "run.steps=4")
    newest = first.path / "checkpoints" / "step-000004" / "training" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    torn = newest.read_bytes()
    again = train("damaged", LORA + EVERY_TWO, "run.steps=4")
    assert any(event["event"] == "start" and str(event["resumed_from"]).endswith("step-000002") for event in again.events)
    assert torn in [path.read_bytes() for path in (first.path / "checkpoints").rglob("state.pt")]
    assert again.losses == first.losses


def test_resuming_with_another_seed_is_refused_by_name(train):
    train("changed", LORA, "run.steps=2")
    with pytest.raises(InputError, match=r"run\.seed was None and is 7"):
        train("changed", LORA, "run.steps=4", "run.seed=7")


def test_resuming_with_more_steps_goes_on(train):
    train("longer", LORA, "run.steps=2", "optimizer.schedule='constant'")
    longer = train("longer", LORA, "run.steps=4", "optimizer.schedule='constant'")
    assert sorted(longer.losses) == [1, 2, 3, 4]
    assert longer.losses == train("at-once", LORA, "run.steps=4", "optimizer.schedule='constant'").losses


def test_a_named_checkpoint_is_taken_up(train):
    first = train("named", LORA + EVERY_TWO, "run.steps=4")
    train("named", LORA + EVERY_TWO, "run.steps=4", resume=str(first.path / "checkpoints" / "step-000002"))
    starts = [event for event in first.events if event["event"] == "start"]
    assert starts[-1]["resumed_from"].endswith("step-000002")
    with pytest.raises(InputError, match="there is no such folder"):
        train("named", LORA, resume="nowhere")

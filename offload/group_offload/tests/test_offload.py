"""Training with weights that are gone when they are not needed: a device that forgets, and the run without offload beside it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.runs.conftest import short_run, start_run
from tunesmith.config import ConfigErrors
from tunesmith_group_offload.groups import Group
from tunesmith_group_offload.schedule import Schedule
from tunesmith_sana import SanaFamily

Runner = Callable[..., Path]
LORA = "[plugins.lora]\nrank = 2\n"


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SanaFamily.tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        Image.fromarray(np.full((64, 64, 3), 90 * number, np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"shade {number}")
    return folder


@pytest.fixture
def train(tmp_path: Path, twin: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run the common tables and `extra`; gives the run's directory."""
    monkeypatch.chdir(tmp_path)

    model = f'family = "sana"\npath = {str(twin)!r}\ncomplex_human_instruction = false'
    dataset = f"path = {str(pictures)!r}\nresolution = 64"

    def start(name: str, extra: str, *overrides: str) -> Path:
        text = short_run(model, "lr = 1e-2", dataset, VALIDATION + extra, steps=3, batch_size=1)
        return start_run(tmp_path / f"{name}.toml", text, ("run.gradient_checkpointing=true", *overrides)).path

    return start


VALIDATION = """
[validation]
prompts = { grey = "a shade" }
resolutions = ["64x64"]
steps = 2
at_start = false

"""


class Device:
    """What the groups did: how often weights came, and the most groups at once."""

    def __init__(self) -> None:
        self.loads = 0
        self.schedules: list[Schedule] = []


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device on which weights are copies, and nothing but NaN once they have left it."""
    device = Device()
    begin = Schedule.__init__

    def arrive(group: Group, stream: Any = None) -> None:
        if not group.is_here:
            device.loads += 1
            for tensor, home in zip(group.tensors, group.homes, strict=True):
                tensor.data = home.clone()
            group.is_here = True

    def leave(group: Group) -> None:
        if group.is_here:
            for tensor in group.tensors:
                tensor.data.fill_(torch.nan)  # also for whoever still holds this copy
            group.is_here = False

    def start(schedule: Schedule, stretches: Any, groups: Any, stream: Any) -> None:
        begin(schedule, stretches, groups, stream)
        device.schedules.append(schedule)
        for group in groups:
            for tensor, home in zip(group.tensors, group.homes, strict=True):
                tensor.data = torch.full_like(home, torch.nan)

    monkeypatch.setattr(Group, "load", arrive)
    monkeypatch.setattr(Group, "unload", leave)
    monkeypatch.setattr(Schedule, "__init__", start)
    return device


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "final/pytorch_lora_weights.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


@pytest.mark.parametrize(("settings", "loads"), [("", 7), ("blocks_per_group = 2", 3), ("blocks_per_group = 3", 3)])
def test_a_run_with_blocks_that_come_and_go_is_the_run_without(train: Runner, forgetful: Device, settings: str, loads: int) -> None:
    """Of n groups each comes once in forward, and all but the last, which stays, once more in backward: 2n - 1 a step."""
    offloaded = train("offloaded", f"{LORA}[plugins.group_offload]\n{settings}", "validation.at_end=false")
    assert same(adapter(train("plain", LORA, "validation.at_end=false")), adapter(offloaded))
    [schedule] = forgetful.schedules
    assert schedule.most_here == 1
    assert forgetful.loads == 3 * loads
    assert not any(group.is_here for group in schedule.groups)


def test_layers_that_come_and_go_give_the_same_run(train: Runner, forgetful: Device) -> None:
    offloaded = train("offloaded", f"{LORA}[plugins.group_offload]\nlevel = 'leaf'", "validation.at_end=false")
    assert same(adapter(train("plain", LORA, "validation.at_end=false")), adapter(offloaded))


def test_validation_sees_the_weights_too(train: Runner, forgetful: Device) -> None:
    folders = [train("plain", LORA), train("offloaded", f"{LORA}[plugins.group_offload]")]
    first, second = (Image.open(folder / "validation/step-000003/grey-64x64-seed0.png").tobytes() for folder in folders)
    assert first == second


def test_weights_in_files_give_the_same_run_and_leave_no_file(train: Runner, tmp_path: Path) -> None:
    offloaded = train("offloaded", f"{LORA}[plugins.group_offload]\nto_disk = 'away'", "validation.at_end=false")
    assert same(adapter(train("plain", LORA, "validation.at_end=false")), adapter(offloaded))
    gc.collect()
    assert list((tmp_path / "away").iterdir()) == []


def test_without_checkpointing_backward_would_find_the_weights_gone_and_it_is_refused(train: Runner) -> None:
    with pytest.raises(ConfigErrors, match=r"set \[run\] gradient_checkpointing = true"):
        train("refused", f"{LORA}[plugins.group_offload]", "run.gradient_checkpointing=false")


def test_where_every_weight_is_trained_it_would_save_nothing_and_is_refused(train: Runner) -> None:
    with pytest.raises(ConfigErrors, match="it would save nothing"):
        train("refused", "[plugins.group_offload]")

"""A disk that is full, read-only or gone: what was saved stays, one message says so, and the run can go on."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.processes import Ended, start
from tests.runs.conftest import LORA, Result, config_text
from tunesmith import checkpoints
from tunesmith.events import Event
from tunesmith.rundir import RunDirectory

SETTINGS = ("run.steps=6", "validation.at_start=false", "validation.at_end=false")
EVERY_TWO = "[checkpoints]\nevery = 2\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def tune(config: Path, *overrides: str, limit: int | None = None) -> Ended:
    """`tune run`, with the largest file that it may write."""
    return start(config.parent, "run", str(config), sets=overrides, limit=limit).wait()


def a_config(tmp_path: Path, twin: Path, pictures: Path, name: str) -> Path:
    config = tmp_path / f"{name}.toml"
    config.write_text(config_text(twin, pictures, EVERY_TWO))
    return config


def assert_told(done: Ended, reason: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    [told] = [line for line in done.stderr.splitlines() if "cannot write" in line]
    assert reason in told
    assert "start the same command again" in told


def test_a_full_disk_keeps_the_checkpoint_before(small_disk, tmp_path, twin, pictures, train):
    straight = train("straight", EVERY_TWO, *SETTINGS)
    config = a_config(tmp_path, twin, pictures, "full")
    output = f"run.output='{small_disk}'"
    assert tune(config, *SETTINGS, output, "run.steps=2").returncode == 0
    whole = {file: file.read_bytes() for file in (small_disk / "full").rglob("*") if file.is_file() and "step-000002" in str(file)}
    (small_disk / "filler").write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 200_000))
    assert_told(tune(config, *SETTINGS, output), "No space left on device")
    assert whole
    assert all(file.read_bytes() == content for file, content in whole.items())
    (small_disk / "filler").unlink()
    again = tune(config, *SETTINGS, output, "checkpoints.keep=1")
    assert again.returncode == 0, again.stderr
    assert Result(small_disk / "full").losses == straight.losses


def test_a_disk_that_is_full_before_the_start_is_told(small_disk, tmp_path, twin, pictures):
    config = a_config(tmp_path, twin, pictures, "early")
    (small_disk / "runs").mkdir()
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    assert_told(tune(config, *SETTINGS, f"run.output='{small_disk / 'runs'}'"), "No space left on device")


def test_the_state_of_the_training_that_finds_no_room_tells_the_disks_own_reason(small_disk):
    room = shutil.disk_usage(small_disk).free // 4  # floats
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints._save_state({"a": torch.zeros(room), "b": torch.zeros(room)}, small_disk / "state.pt")


def test_an_event_that_was_cut_off_takes_none_with_it(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.append(Event("step", 1))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"loss": 0.')
    directory.describe("", {})
    directory.append(Event("start", 1))
    assert [event["event"] for event in directory.events()] == ["step", "start"]


def test_a_limit_on_file_sizes_keeps_the_checkpoint_before(tmp_path, twin, pictures):
    config = a_config(tmp_path, twin, pictures, "limited")
    assert tune(config, *SETTINGS, "run.steps=2").returncode == 0
    assert_told(tune(config, *SETTINGS, limit=300_000), "File too large")
    checkpoints = tmp_path / "runs" / "limited" / "checkpoints"
    assert (checkpoints / "step-000002" / "manifest.json").is_file()
    assert not (checkpoints / "step-000004").exists()
    assert tune(config, *SETTINGS).returncode == 0
    assert (checkpoints / "step-000006").is_dir()


def test_a_disk_that_turns_read_only_is_told(small_disk, tmp_path, twin, pictures):
    config = a_config(tmp_path, twin, pictures, "frozen")
    output = f"run.output='{small_disk}'"
    assert tune(config, *SETTINGS, output, "run.steps=2").returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = tune(config, *SETTINGS, output)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "Read-only file system" in done.stderr
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert tune(config, *SETTINGS, output).returncode == 0


def test_a_folder_that_vanishes_while_training_is_told_and_not_made_anew(train, monkeypatch):
    from tunesmith import RunFailed
    from tunesmith.trainer import Trainer

    one_step = Trainer.one_step

    def vanishes(self, batches):
        one_step(self, batches)
        if self.run.step == 3:
            shutil.move(self.run.directory.path, self.run.directory.path.with_name("elsewhere"))

    monkeypatch.setattr(Trainer, "one_step", vanishes)
    with pytest.raises(RunFailed, match=r"cannot write .*vanished.*No such file or directory.*start the same command again"):
        train("vanished", LORA + EVERY_TWO, *SETTINGS)
    assert not Path("runs/vanished").exists()
    assert (Path("runs/elsewhere") / "checkpoints" / "step-000002" / "manifest.json").is_file()

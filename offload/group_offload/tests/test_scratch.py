"""Files of weights are gone when nobody needs them, also after a kill, and a disk that refuses is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tunesmith import RunFailed
from tunesmith.config import ConfigErrors
from tunesmith_group_offload.groups import Group
from tunesmith_group_offload.scratch import Scratch

from .conftest import Runner

LORA = "[plugins.lora]\nrank = 2\n"
HOLD = """
import sys, time
from pathlib import Path
from tunesmith_group_offload.scratch import Scratch
made = Scratch(Path(sys.argv[1]), "weights")
(made.path / "0000.safetensors").write_bytes(b"weights")
print(made.path, flush=True)
time.sleep(600)
"""


def test_a_folder_is_deleted_when_it_is_let_go(tmp_path: Path) -> None:
    made = Scratch(tmp_path / "below", "weights")
    (made.path / "0000.safetensors").touch()
    assert made.path.is_dir()
    del made
    assert list((tmp_path / "below").iterdir()) == []


def test_what_a_killed_process_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    own = tmp_path / "weights-of-mine"
    own.mkdir()
    first = Scratch(tmp_path, "weights")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        second = Scratch(tmp_path, "weights")
        assert set(tmp_path.iterdir()) == {own, first.path, left, second.path}
        os.kill(other.pid, signal.SIGKILL)
    third = Scratch(tmp_path, "weights")
    assert set(tmp_path.iterdir()) == {own, first.path, second.path, third.path}


def test_a_folder_that_is_a_file_is_refused(train: Runner, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigErrors, match=r"\[plugins.group_offload\] to_disk: .*file is a file; name a folder"):
        train(f"{LORA}[plugins.group_offload]\nto_disk = {str(file / 'below')!r}")


def test_a_full_disk_is_told_with_what_to_do(train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(group: Group, file: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(Group, "keep_on_disk", refuse)
    with pytest.raises(RunFailed, match=r"group_offload cannot write below .*: I/O error: No space left on device .*; make room, name"):
        train(f"{LORA}[plugins.group_offload]\nto_disk = {str(tmp_path)!r}")

"""`tune` in processes of their own, which are forked from one that has imported what takes long to import."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkdtemp

PRELOADED = ("tunesmith.cli.app", "tunesmith.session", "tunesmith_sana", "tunesmith_lora", "tunesmith_video")
PATIENCE = 300
"""Seconds that a command may take on a busy machine."""

_CONTEXT = multiprocessing.get_context("forkserver")  # it has computed nothing and has one thread, which a test's own process has not
_CONTEXT.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True)
class Ended:
    """How a process ended: the exit code, or a negative signal, and what it said."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Tune:
    """A `tune` at work."""

    process: BaseProcess
    said: Path

    def wait(self) -> Ended:
        """Wait for its end; AssertionError where there is none."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"no end within {PATIENCE} seconds"
        return Ended(self.process.exitcode, (self.said / "stdout").read_text(), (self.said / "stderr").read_text())

    def signal(self, number: int, when: Callable[[], bool]) -> Ended:
        """Send a signal as soon as something is so, and wait for the end."""
        end = time.monotonic() + PATIENCE
        while not when() and self.process.is_alive() and time.monotonic() < end:
            time.sleep(0.02)
        assert self.process.is_alive(), self.wait()
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        return self.wait()


def start(
    folder: Path, *arguments: str, sets: Sequence[str] = (), limit: int | None = None, before: Callable[[], None] | None = None
) -> Tune:
    """Begin `tune ARGUMENTS --set ...` in a folder: with `limit` as the largest file it may write, and after `before`.

    `before` is a function of a module, which is called in the new process.
    """
    said = Path(mkdtemp(prefix="tune-"))
    command = ("tune", *arguments, *(part for one in sets for part in ("--set", one)))
    process = _CONTEXT.Process(target=_carry_out, args=(command, folder, said, limit, before), daemon=True)
    process.start()
    return Tune(process, said)


def _carry_out(command: Sequence[str], folder: Path, said: Path, limit: int | None, before: Callable[[], None] | None) -> None:
    import torch

    from tunesmith.cli.app import main

    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(said / stream.name.strip("<>"), os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.chdir(folder)
    torch.set_num_threads(1)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if before is not None:
        before()
    sys.argv = list(command)
    main()

"""Fills a cache in processes of their own: see `main`."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from core.tests.data.support import FIELDS, CountingRun, ordered
from tunesmith import Batch
from tunesmith.cache import disk as module
from tunesmith.cache.disk import Cache
from tunesmith.encoding.fill import fill


class LoggingRun(CountingRun):
    """A run that encodes slowly and writes down, for all processes, what it encodes."""

    def __init__(self, folder: Path, seconds: float, log: Path) -> None:
        super().__init__(folder, batch_size=1)
        self.seconds = seconds
        self.log = log

    def encode_batch(self, run: Any, batch: Batch) -> Batch:
        time.sleep(self.seconds)
        names = [source.file.name for source in batch.sources] or [caption.text for caption in batch.captions]
        with self.log.open("a") as log:
            log.write("".join(f"{os.getpid()} {key} {name}\n" for name in names for key in sorted(batch.wanted)))
        return super().encode_batch(run, batch)


def fill_once(folder: Path, seconds: float, where: str = "cache") -> None:
    """Fill the cache for the pictures in `folder / "set"`."""
    order = ordered(folder / "set")
    run: Any = LoggingRun(folder, seconds, folder / f"{where}.log")
    with Cache(folder / where) as cache:
        fill(run, cache, FIELDS, order, order.all_captions(), run.progress)


def killed(folder: Path, kills: int, seconds: float) -> int:
    """Fill in forks of this process and kill them at random moments, all but the last one; how many were at work then."""
    moments = random.Random(0)
    died = 0
    while died < kills:
        child = os.fork()
        if child == 0:
            fill_once(folder, seconds)
            os._exit(0)
        time.sleep(moments.uniform(0.0, 12 * seconds) + 0.05)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        died += 1
        if os.WIFEXITED(status):
            break
    return died


def shared(folder: Path, processes: int, seconds: float) -> None:
    """Fill in several forks of this process at once."""
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            fill_once(folder, seconds)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


def main() -> None:
    """`FOLDER share COUNT SECONDS`: fill by so many at once; `FOLDER kill COUNT SECONDS`: kill so often, and tell how often."""
    folder, mode, count, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    module.GROUP_ENTRIES = 4
    if mode == "share":
        shared(folder, count, seconds)
    else:
        print(killed(folder, count, seconds))


if __name__ == "__main__":
    main()

"""What goes on beside the encoder: decoding ahead of it, and writing behind it."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

from ..batch import Caption, Source
from ..kinds import Unreadable
from .encode import Inputs, named
from .watch import Watch
from .work import Job, Work

T = TypeVar("T", bound=Source | Caption)
DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode."""
AHEAD = 2
"""Batches that are being decoded at least while one is encoded; more of them, as long as there are fewer than so many samples"""
AHEAD_SAMPLES = 2 * DECODERS
"""and their inputs have not more than"""
AHEAD_BYTES = 2**30
"""so many bytes."""
UNWRITTEN = 8
"""Calls that wait at most to be done in the background."""
_Waiting: TypeAlias = tuple[list[Job[T]], list[Future[Inputs | Unreadable]]]


def decoded_ahead(
    pool: ThreadPoolExecutor, batches: Iterable[list[Job[T]]], work: Work[T], watch: Watch
) -> Iterator[tuple[list[Job[T]], list[Inputs | Unreadable]]]:
    """The batches with their inputs, a few of them being decoded ahead."""
    waiting: deque[_Waiting[T]] = deque()
    for jobs in batches:
        waiting.append((jobs, [pool.submit(work.inputs, job.item, job.lacks) for job in jobs]))
        if len(waiting) > AHEAD and not _has_room([jobs for jobs, _ in waiting]):
            yield _decoded(*waiting.popleft(), watch)
    while waiting:
        yield _decoded(*waiting.popleft(), watch)


@contextmanager
def in_background() -> Iterator[Background]:
    """A thread that does things one after the other; all of them are done when the block is left, whatever happened."""
    with ThreadPoolExecutor(1, "cache-writer") as thread:
        background = Background(thread)
        yield background
        background.finish()


class Background:
    """Calls that are made in order by another thread; an error of one is raised by a later call here, or in the end."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._waiting: deque[Future[None]] = deque()

    def submit(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have a call made; waits where too many are waiting."""
        self._waiting.append(self._thread.submit(call, *arguments))
        while len(self._waiting) > UNWRITTEN or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait for all calls."""
        while self._waiting:
            self._waiting.popleft().result()


def _has_room(batches: Sequence[list[Job[T]]]) -> bool:
    items = [job.item for jobs in batches for job in jobs]
    return len(items) < AHEAD_SAMPLES and sum(map(_bytes, items)) < AHEAD_BYTES


def _bytes(item: Source | Caption) -> int:
    """The size of an item's pixels, about."""
    if isinstance(item, Caption):
        return 0
    return 4 * 3 * math.prod(item.crop.size) * (item.window.frames if item.window is not None else 1)


def _decoded(
    jobs: list[Job[T]], futures: Sequence[Future[Inputs | Unreadable]], watch: Watch
) -> tuple[list[Job[T]], list[Inputs | Unreadable]]:
    found = []
    for job, future in zip(jobs, futures, strict=True):
        watch.at(partial("decoding {}".format, named(job.item)))
        found.append(future.result())
    return jobs, found

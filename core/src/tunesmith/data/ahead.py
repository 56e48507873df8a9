"""Work that is done ahead by a thread, position by position."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

R = TypeVar("R")
T = TypeVar("T")

LOTS = 2
"""Lots that wait to be taken."""


class Ahead(Iterator[T], Generic[R, T]):
    """What `finish(ready(position))` is for one position after the other; a thread calls `ready` ahead until `close`.

    `finish` is called where the result is taken, and what goes wrong in the thread is raised there. The thread readies
    `lot` positions at a stretch, for its every turn slows the caller down.
    """

    def __init__(self, ready: Callable[[int], R], finish: Callable[[R], T], start: int, lot: int) -> None:
        self._make_ready, self._finish, self._lot = ready, finish, lot
        self._ready: queue.SimpleQueue[R | _Failed] = queue.SimpleQueue()
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()  # each for one lot; False ends the thread
        self._taken = 0
        self._closed = False
        for _ in range(LOTS):
            self._turns.put(True)
        self._thread = threading.Thread(target=self._work, args=(start,), name="loader", daemon=True)
        self._thread.start()

    def __enter__(self) -> Ahead[R, T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __next__(self) -> T:
        self.go_on()
        item = self._ready.get()
        self._taken += 1
        if isinstance(item, _Failed):
            raise item.error
        return self._finish(item)

    def go_on(self) -> None:
        """Let the thread replace what was taken, once that is a lot; taking the next one does it too.

        Two threads that run Python slow each other down, so this is for where the caller leaves Python for a while.
        """
        if self._taken >= self._lot:
            self._taken = 0
            self._turns.put(True)

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._turns.put(False)
        self._thread.join()

    def _work(self, start: int) -> None:
        positions = itertools.count(start)
        while self._turns.get():
            for position in itertools.islice(positions, self._lot):
                if self._closed:
                    return
                try:
                    self._ready.put(self._make_ready(position))
                except BaseException as error:  # raised again by whoever takes the result
                    self._ready.put(_Failed(error))
                    return


class _Failed:
    """An error on its way to the thread that takes the results."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

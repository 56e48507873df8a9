"""Work that is done ahead by a thread, position by position."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

R = TypeVar("R")
T = TypeVar("T")

LOTS = 2
"""Lots that wait to be taken, at least one of them whole."""


class Ahead(Iterator[T], Generic[R, T]):
    """What `finish(ready(position))` is for one position after the other; a thread calls `ready` ahead until `close`.

    `finish` is called where the result is taken, and what goes wrong in the thread is raised there. The thread readies
    `lot` positions at a stretch: each turn slows the caller down, and the first of a lot takes several times as long as
    the others, for which the processor has everything at hand. `quick` says how many positions `ready` can do without
    waiting for anything; the caller then does so many itself, whom a thread would only slow down.
    """

    def __init__(
        self, ready: Callable[[int], R], finish: Callable[[R], T], start: int, lot: int, quick: Callable[[], int] = lambda: 0
    ) -> None:
        self._make_ready, self._finish, self._lot, self._quick = ready, finish, lot, quick
        self._position = self._asked = start  # the next to be taken, and the first that nobody was asked for
        self._ready: queue.SimpleQueue[R | _Failed] = queue.SimpleQueue()
        self._turns: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # where each lot begins; None ends the thread
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()
        self.go_on()

    def __enter__(self) -> Ahead[R, T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __next__(self) -> T:
        self.go_on()
        if self._position == self._asked:  # it is quick, and the thread is idle
            self._asked += self._quick()
            self._make_ready_all(range(self._position, self._asked))
        self._position += 1
        item = self._ready.get()
        if isinstance(item, _Failed):
            raise item.error
        return self._finish(item)

    def go_on(self) -> None:
        """Let the thread replace what was taken, once that is a lot; taking the next one does it too.

        Two threads that run Python slow each other down, so this is for where the caller leaves Python for a while.
        """
        while self._asked - self._position <= (LOTS - 1) * self._lot and not self._quick():
            self._turns.put(self._asked)
            self._asked += self._lot

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._turns.put(None)
        self._thread.join()

    def _work(self) -> None:
        start = self._turns.get()
        while start is not None and self._make_ready_all(range(start, start + self._lot)):
            start = self._turns.get()

    def _make_ready_all(self, lot: range) -> bool:
        """Whether all positions of a lot were; nothing that follows an error is."""
        for position in lot:
            if self._closed:
                return False
            try:
                self._ready.put(self._make_ready(position))
            except BaseException as error:  # raised again by whoever takes the result
                self._ready.put(_Failed(error))
                return False
        return True


class _Failed:
    """An error on its way to the thread that takes the results."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

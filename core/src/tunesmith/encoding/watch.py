"""A watch over work that may get stuck: it names what has been waited for too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 30.0
"""Seconds after which something is told for the first time; then after twice as long, and so on."""


class Watch:
    """Knows what is waited for; a thread tells it to `tell` when that takes long, as long as `running` lasts."""

    def __init__(self, tell: Callable[[str], None], patience: float | None = None) -> None:
        self._tell = tell
        self._patience = PATIENCE if patience is None else patience
        self._now: tuple[float, Callable[[], str]] | None = None
        self._ended = threading.Event()

    def at(self, what: Callable[[], str] | None) -> None:
        """What is waited for from now on, in words that are made when they are needed; None for nothing."""
        self._now = None if what is None else (time.monotonic(), what)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch until the block is left."""
        thread = threading.Thread(target=self._work, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _work(self) -> None:
        told: tuple[tuple[float, Callable[[], str]] | None, float] = (None, self._patience)
        while not self._ended.wait(self._patience / 10):
            now = self._now
            if now is None:
                continue
            due = told[1] if told[0] is now else self._patience
            passed = time.monotonic() - now[0]
            if passed >= due:
                self._tell(f"still {now[1]()}, for {passed:.0f} seconds")
                told = (now, 2 * due)

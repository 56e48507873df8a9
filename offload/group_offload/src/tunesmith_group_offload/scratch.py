"""Folders of files that nobody needs after the process: deleted when they are let go, or by the next run after one that was killed."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

IN_USE = ".in_use"
"""A file in every such folder, locked by the process that needs it; no other folder is ever deleted."""


class Scratch:
    """A new folder below `parent`, which is made if it is not there; what earlier processes left there under this name is deleted.

    OSError if the disk refuses. Where the system or the file system has no locks, nothing of others is deleted.
    """

    def __init__(self, parent: Path, name: str) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        turn = _lock(parent, waits=True)  # nobody's folder is there that is not locked yet
        try:
            if turn is not None:
                for folder in parent.glob(f"{name}-*"):
                    _delete_unless_in_use(folder)
            self.path = Path(mkdtemp(prefix=f"{name}-", dir=parent))
            (self.path / IN_USE).touch()
            self._delete = weakref.finalize(self, _delete, self.path, _lock(self.path / IN_USE))
        finally:
            if turn is not None:
                os.close(turn)

    def delete(self) -> None:
        """Delete the folder with its content."""
        self._delete()


def why_unusable(folder: Path) -> str | None:
    """Why nothing could be written below a folder that need not be there yet, or None."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        return f"{there} is a file; name a folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written to; name another folder, or change its permissions"
    return None


def _delete_unless_in_use(folder: Path) -> None:
    lock = _lock(folder / IN_USE)
    if lock is not None:
        _delete(folder, lock)


def _delete(folder: Path, lock: int | None) -> None:
    rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _lock(path: Path, waits: bool = False) -> int | None:
    """A lock on a file or folder until the descriptor is closed or the process ends; None if it cannot be had."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor

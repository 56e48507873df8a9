"""Locks on files that end with the process that holds them, however it ends."""

from __future__ import annotations

import json
import os
import socket
import uuid
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError

try:
    import fcntl
except ImportError:  # a system without such locks: there processes do not see each other
    HAS_LOCKS = False
else:
    HAS_LOCKS = True


def lock(file: Path, *, shared: bool = False) -> BinaryIO | None:
    """Hold a lock until what is returned is closed or the process ends; None if another holds one that excludes it."""
    handle = file.open("a+b")
    if not HAS_LOCKS:
        return handle
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        handle.close()
        raise InputError(
            f"[run] cache_dir: {file} cannot be locked ({error.strerror}), as on many network file systems; choose a folder on a local disk"
        ) from error
    return handle


class Writer:
    """One that writes to a cache: its name, and a locked file that tells others that it lives, from `begin` to `end`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = uuid.uuid4().hex
        self._lock: BinaryIO | None = None

    def begin(self) -> None:
        """Be alive; nothing happens the second time."""
        if self._lock is None:
            self._lock = lock(lock_file(self.folder, self.name))
            assert self._lock is not None, "nobody else knows this name yet"
            self._lock.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
            self._lock.flush()

    def end(self) -> None:
        """Be dead."""
        if self._lock is not None:
            lock_file(self.folder, self.name).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def lock_file(folder: Path, writer: str) -> Path:
    """The file that a writer locks while it lives."""
    return folder / f"writer-{writer}.lock"


def is_alive(folder: Path, writer: str) -> bool:
    """Whether a writer still lives; the file of one that was killed is removed."""
    file = lock_file(folder, writer)
    if not HAS_LOCKS or not file.exists():
        return False
    held = lock(file)
    if held is None:
        return True
    file.unlink(missing_ok=True)
    held.close()
    return False


def described(folder: Path, writer: str) -> str:
    """A writer as a person looks for it."""
    try:
        told = json.loads(lock_file(folder, writer).read_bytes())
        return f"process {told['process']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

"""A run directory: what was asked, every event, checkpoints and validation media."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import rmtree
from typing import IO, Any

import torch
from safetensors import SafetensorError

from .discovery import InstalledPlugin, installed
from .errors import InputError, RunFailed
from .events import Event

WAY_ON = (
    "earlier checkpoints were not touched: make room or mend the folder, then start the same command again, "
    "and it goes on from the newest one"
)
LIBRARIES = ("tunesmith", "torch", "diffusers", "transformers", "accelerate", "pluggy", "pydantic", "safetensors")


class RunDirectory:
    """The files of one run; `name` and `path` say where."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.validation = path / "validation"
        self.final = path / "final"
        self._lock: IO[bytes] | None = None

    @property
    def name(self) -> str:
        """The run's name: the folder's."""
        return self.path.name

    def create(self) -> None:
        """Make the folders and take the directory for this process; InputError if that is not possible or another has it."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.validation.mkdir(exist_ok=True)
            self._lock = lock(self.path / ".lock")
        except OSError as error:
            raise InputError(
                f"cannot make the run directory {self.path}: {error.strerror}; set [run] output to a folder you can write"
            ) from error

    def next_free(self) -> RunDirectory:
        """This directory if it was not there, or the first of name-2, name-3, ... that was not; it is made at once."""
        for number in itertools.count(1):
            free = self if number == 1 else RunDirectory(self.path.with_name(f"{self.name}-{number}"))
            try:
                free.path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError:
                break  # `create` tells why
            return free
        return self

    def close(self) -> None:
        """Let other processes have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def describe(self, config_text: str, manifest: Mapping[str, Any]) -> None:
        """Write `config.toml` and `manifest.json`: what was asked, and with what it runs; RunFailed if the disk refuses."""
        try:
            write_atomically(self.path / "config.toml", config_text)
            write_atomically(self.path / "manifest.json", json.dumps(dict(manifest), indent=2, default=str) + "\n")
            self._end_torn_line()
        except OSError as error:
            raise RunFailed(f"cannot write {error.filename or self.path}: {error.strerror}; {WAY_ON}") from error

    def _end_torn_line(self) -> None:
        """End the last line of `events.jsonl` if a full disk cut it off, lest the next event be lost with it."""
        file = self.path / "events.jsonl"
        if not file.exists():
            return
        with file.open("r+b") as opened:
            length = opened.seek(0, os.SEEK_END)
            opened.seek(max(length - 1, 0))
            if opened.read() not in (b"", b"\n"):
                opened.write(b"\n")

    def append(self, event: Event) -> None:
        """Add an event to `events.jsonl`; RunFailed if the disk refuses."""
        file = self.path / "events.jsonl"
        try:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(event.line() + "\n")
        except OSError as error:
            raise RunFailed(f"cannot write {file}: {error.strerror}; {WAY_ON}") from error

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event so far; a line torn by a killed process is passed over."""
        file = self.path / "events.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def manifest(plugins: Mapping[str, type[Any]], overrides: tuple[str, ...], config_text: str) -> dict[str, Any]:
    """Versions, plugins, the config's hash and the hardware of a run."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    announced = installed()
    return {
        "versions": {name: _version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "plugins": {name: _origin(name, plugin, announced) for name, plugin in plugins.items()},
        "config_hash": hashlib.blake2b(config_text.encode(), digest_size=16).hexdigest(),
        "overrides": list(overrides),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "accelerator": torch.cuda.get_device_name() if accelerator and accelerator.type == "cuda" else str(accelerator or "none"),
        },
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _origin(name: str, plugin: type[Any], announced: Mapping[str, list[InstalledPlugin]]) -> str:
    """The distribution and version that a plugin comes from, or its module where none announces it."""
    return " ".join(one.origin for one in announced.get(name, [])) or plugin.__module__


def lock(file: Path) -> IO[bytes]:
    """Hold a lock on a file until what is returned is closed or the process ends; InputError if another process holds it.

    Where the system or the file system has no such locks, there is none.
    """
    handle = file.open("wb")
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise InputError(
            f"another process is running in {file.parent}; wait for it, give this run another [run] name, or start it with --resume never"
        ) from None
    except (ImportError, OSError):
        pass
    return handle


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is whole or not there at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder to fill beside `target`; made durable and renamed to it once, when the block ends without an error.

    What an earlier, killed attempt left is cleared first. RunFailed with a way on if the disk refuses.
    """
    staging = target.with_name(f".{target.name}.partial")
    try:
        if staging.exists():
            rmtree(staging)
        staging.mkdir()  # without its parents: where the run's folder has vanished, none is made in its place
        yield staging
        for entry in sorted(staging.rglob("*")):
            sync(entry)
        sync(staging)
        os.replace(staging, target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunFailed(f"cannot write {target}: {reason}; {WAY_ON}") from error


def sync(path: Path) -> None:
    """Make a file or folder durable on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

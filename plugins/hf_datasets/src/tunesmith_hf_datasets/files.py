"""Files that lie inside of a table: written out once, as they are."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import InputError, Kind

_DONE = "done.json"
_BEGINNINGS = (
    (0, b"\x89PNG", (".png",)),
    (0, b"\xff\xd8\xff", (".jpg",)),
    (8, b"WEBP", (".webp",)),
    (8, b"WAVE", (".wav",)),
    (8, b"AVI ", (".avi",)),
    (0, b"fLaC", (".flac",)),
    (0, b"OggS", (".ogg",)),
    (0, b"ID3", (".mp3",)),
    (0, b"\xff\xfb", (".mp3",)),
    (4, b"ftyp", (".mp4", ".m4a")),
    (0, b"\x1aE\xdf\xa3", (".mkv", ".webm")),
)
"""How files of known formats begin, and at which byte, for rows that do not name theirs."""


@dataclass(frozen=True)
class Kept:
    """The file of each row, why other rows have none, and the folders that the files lie in."""

    files: Mapping[int, str]
    faults: Mapping[int, str]
    homes: tuple[Path, ...]


class _NoFile(Exception):
    """Why a row has no file."""


def keep_files(table: Any, column: str, kind: Kind[Any], folder: Path, homes: Sequence[Path]) -> Kept:
    """The files of a column, undecoded: those that rows hold are written below `folder`, unless they are there already.

    Files that rows name stay where they are, if that is in one of `homes`. What was interrupted is gone on with.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = {int(file.stem): str(file) for file in folder.iterdir() if file.stem.isdecimal() and file.suffix in kind.suffixes}
        done = _done(folder, kind)
        if done is None:
            done = _fill(table, column, kind, folder, homes, there)
            _write(folder / _DONE, json.dumps(done).encode())
    except OSError as error:
        raise InputError(f"[run] cache_dir: {folder} cannot be written to ({error.strerror or error})") from error
    elsewhere = {int(row): str(file) for row, file in done["elsewhere"].items()}
    faults = {int(row): str(fault) for row, fault in done["faults"].items()}
    return Kept(there | elsewhere, faults, (Path(os.path.realpath(folder)), *homes))


def _done(folder: Path, kind: Kind[Any]) -> dict[str, Any] | None:
    """What is known of a folder that has all files of its table; None if it is not finished for this kind."""
    try:
        done: dict[str, Any] = json.loads((folder / _DONE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return done if done.get("suffixes") == sorted(kind.suffixes) else None


def _fill(table: Any, column: str, kind: Kind[Any], folder: Path, homes: Sequence[Path], there: dict[int, str]) -> dict[str, Any]:
    """Write the files that are not `there`, and note them there; tells of the other rows."""
    elsewhere: dict[int, str] = {}
    faults: dict[int, str] = {}
    for row in range(len(table)):
        if row in there:
            continue
        value = table[row][column]
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
        try:
            if content is not None:
                file = folder / f"{row:08}{_ending(content, path, kind)}"
                _write(file, content)
                there[row] = str(file)
            else:
                elsewhere[row] = _place(path, kind, homes)
        except _NoFile as fault:
            faults[row] = str(fault)
    return {"suffixes": sorted(kind.suffixes), "elsewhere": elsewhere, "faults": faults}


def _ending(content: bytes, path: str | None, kind: Kind[Any]) -> str:
    """The ending that a row's file gets: that of its name, or else what its first bytes say."""
    named = os.path.splitext(path or "")[1].lower()
    if named in kind.suffixes:
        return named
    begun = [endings for place, mark, endings in _BEGINNINGS if content[place : place + len(mark)] == mark]
    for ending in begun[0] if begun else ():
        if ending in kind.suffixes:
            return ending
    what = named or (begun[0][0] if begun else "")
    raise _NoFile(f"{what} is not read" if what else f"what it holds is of no known format (it begins with {content[:8]!r})")


def _place(path: str | None, kind: Kind[Any], homes: Sequence[Path]) -> str:
    """Where a file is that a row names."""
    if not path:
        raise _NoFile("the row holds no file")
    ending = os.path.splitext(path)[1].lower()
    if ending not in kind.suffixes:
        raise _NoFile(f"{ending or 'a file without ending'} is not read")
    real = Path(os.path.realpath(path))
    if "\0" in path or not any(real.is_relative_to(home) for home in homes):
        raise _NoFile("the row names a file outside of the dataset, which is not read")
    return path


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(f".{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)

"""Folders of files: what lies in one, and which of it may be read."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from ..data.funnel import Funnel
from ..kinds import Kind
from ..sources import Entry, Listing
from ..words import printable

AnyKind: TypeAlias = Kind[Any] | type[Kind[Any]]
NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})
"""What no list says anything of; shared, because a dataset may have a million entries."""
OUTSIDE = "a link that leaves the dataset's folder is not followed"
NOT_TEXT = "its name is not UTF-8; rename it"
NO_FILE = "not a file with content but a folder, pipe or device"

_BESIDE = frozenset((".txt", ".json", ".csv", ".jsonl", ".parquet"))
"""Endings of captions and file lists, which lie beside the files of any kind."""
_ENDINGS_TOLD = 5

_Found: TypeAlias = tuple[str, str, str | None]
"""Name, path, and why the file cannot be used."""


def list_folder(folder: Path, kind: AnyKind, funnel: Funnel) -> Listing:
    """The files of a kind below a folder, in the order of their names; nothing is opened.

    Hidden files and folders are left out. What looks like a file of the kind and cannot be used is told to the funnel, and
    a note says what other files there are.
    """
    homes = homes_of(folder)
    found: list[_Found] = []
    others: Counter[str] = Counter()
    waiting = [(str(folder.absolute()), "")]
    while waiting:
        where, prefix = waiting.pop()
        try:
            with os.scandir(where) as listed:
                folders, files = _sorted_out(listed, prefix, kind, homes, others)
        except OSError as error:
            found.append((prefix or "./", where, f"a folder that cannot be listed ({error.strerror})"))
        else:
            found += files
            waiting += folders
    found.sort()
    funnel.total += len(found)
    for name, _, reason in found:
        if reason is not None:
            funnel.lose("readable", reason, name)
    if others:
        funnel.notes.append(_not_looked_at(others, kind, empty=not found))
    return Listing([Entry(name, where, NO_COLUMNS) for name, where, reason in found if reason is None], homes)


def homes_of(folder: Path) -> tuple[Path, ...]:
    """Where links may point: into the folder and, if that is a snapshot in a Hugging Face cache, to the cache's blobs."""
    real = Path(os.path.realpath(folder))
    repositories = [parent.parent for parent in (real, *real.parents) if parent.name == "snapshots"]
    return (real, *(repository / "blobs" for repository in repositories[:1]))


def within(where: str, homes: Sequence[Path]) -> bool:
    """Whether a path, all its links followed, lies in one of the folders."""
    target = Path(os.path.realpath(where))  # unlike Path.resolve, it takes links that go round in a circle
    return any(target.is_relative_to(home) for home in homes)


def refusal(where: str, homes: Sequence[Path]) -> str | None:
    """Why a file that a list names cannot be read, as far as that shows without opening it; None if nothing does.

    The folder that it lies in should be known to be in one of `homes`.
    """
    try:
        status = os.lstat(where)
        if stat.S_ISLNK(status.st_mode):
            if not within(where, homes):
                return OUTSIDE
            status = os.stat(where)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if stat.S_ISREG(status.st_mode) else NO_FILE


def other_ending(name: str, kind: AnyKind) -> str | None:
    """Why a file with this ending is not read, if it looks as if it belonged to the kind."""
    ending = os.path.splitext(name)[1].lower()
    if ending not in kind.other_suffixes:
        return None
    return f"{ending} is not read; make it {endings(kind)}"


def endings(kind: AnyKind) -> str:
    """The endings of a kind's files, as a choice."""
    *others, last = sorted(kind.suffixes)
    return f"{', '.join(others)} or {last}" if others else last


def is_text(name: str) -> bool:
    """Whether the name can be written down: what is not UTF-8 comes from the system as lone surrogates."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _sorted_out(
    listed: Iterator[os.DirEntry[str]], prefix: str, kind: AnyKind, homes: Sequence[Path], others: Counter[str]
) -> tuple[list[tuple[str, str]], list[_Found]]:
    """What a folder holds: folders to go on with, by path and name, and files; the endings of `others` are counted."""
    wanted = kind.suffixes | kind.other_suffixes
    folders: list[tuple[str, str]] = []
    files: list[_Found] = []
    for entry in listed:
        if entry.name.startswith("."):
            continue
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            folders.append((entry.path, f"{name}/"))
        elif entry.is_symlink() and os.path.isdir(entry.path):
            files.append((f"{name}/", entry.path, "a linked folder is not followed"))
        elif (ending := os.path.splitext(entry.name)[1].lower()) in wanted:
            files.append((name, entry.path, _complaint(entry, name, kind, homes)))
        elif ending not in _BESIDE:
            others[ending] += 1
    return folders, files


def _not_looked_at(others: Counter[str], kind: AnyKind, *, empty: bool) -> str:
    """What is said of files with endings that are not the kind's; where there are none of the kind, with a hint."""
    count = others.total()
    ranked = sorted(others, key=lambda ending: (-others[ending], ending))
    told = ", ".join(printable(ending) or "nothing" for ending in ranked[:_ENDINGS_TOLD]) + (", ..." if len(ranked) > _ENDINGS_TOLD else "")
    note = f"not looked at: {count} {'file that ends' if count == 1 else 'files that end'} in {told}"
    return f"{note}; `kind` says what the files are, and this one reads {endings(kind)}" if empty else note


def _complaint(entry: os.DirEntry[str], name: str, kind: AnyKind, homes: Sequence[Path]) -> str | None:
    if not is_text(name):
        return NOT_TEXT
    other = other_ending(name, kind)
    if other is not None or entry.is_file(follow_symlinks=False):
        return other
    return refusal(entry.path, homes)

"""Local copies of what URLs lead to: each file is fetched once, and again when it has changed."""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ..cache.locks import lock
from ..config.datasets import DatasetTable, SampleTable
from ..data.captions import BESIDE
from ..data.database import explained, open_database
from ..data.funnel import Funnel
from ..errors import InputError
from ..sources import Listing
from .folder import NOT_TEXT, AnyKind, is_text, list_folder, other_ending
from .lists import LISTS, below, list_rows, read_rows
from .remote import Forbidden, Missing, Remote, Site, Unreachable

FETCHERS = 16
"""Files that are fetched at once."""
NOT_THERE = "there is no such file"

R = TypeVar("R")

_SCHEMA = "CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, stamp TEXT, here INT) WITHOUT ROWID"
_TOGETHER = 1024
"""Files that are handed to the fetchers at a time."""
_WAIT = 0.2
"""Seconds between looks at whether another process has finished."""


def list_url(url: str, table: DatasetTable, kind: AnyKind, folder: Path, funnel: Funnel) -> Listing:
    """The files of a folder or of a file list behind a URL, brought to this machine below `folder`, which holds nothing else.

    Captions beside them come along. What cannot be had is told to the funnel; InputError if nothing can. Without a
    connection the files are those of the last time, if all of them are here.
    """
    site = Site(url)
    with _alone(folder):
        mirror = _Mirror(folder, site, kind, _ending(table), funnel)
        with closing(mirror):
            if PurePosixPath(site.name).suffix.lower() in LISTS:
                return mirror.of_list(table)
            return mirror.of_folder()


class _Mirror:
    """The copy of one folder or list: `files` below its root, and which state of each is there."""

    def __init__(self, root: Path, site: Site, kind: AnyKind, ending: str | None, funnel: Funnel) -> None:
        self.site = site
        self.kind = kind
        self.ending = ending
        self.funnel = funnel
        self.files = root / "files"
        self.partial = root / "partial"
        self._database = root / "files.sqlite"
        self._lock = threading.Lock()
        self._connection = open_database(self._database, _SCHEMA)
        shutil.rmtree(self.partial, ignore_errors=True)  # what a killed process had begun
        self.files.mkdir(exist_ok=True)
        self.partial.mkdir(exist_ok=True)

    def close(self) -> None:
        self._connection.close()

    def of_folder(self) -> Listing:
        """What is in the folder behind the URL."""
        try:
            there = self.site.files()
            if not there:
                raise Missing("no files")
            wanted = self._wanted(there)
            faults: dict[str, str] = {}
            if self.site.is_web:  # whose listings tell names only
                wanted, faults = self._looked_up({name: file.where for name, file in wanted.items()})
        except Unreachable as error:
            self._do_without(error)
            return list_folder(self.files, self.kind, self.funnel)
        except (Missing, Forbidden) as error:
            raise InputError(self._complaint(error)) from error
        self._forget([name for name in self._known() if name not in there])
        for name, fault in (faults | self._bring(wanted)).items():
            if name in there and self._is_sample(name):
                self._lose(name, fault)
        return list_folder(self.files, self.kind, self.funnel)

    def of_list(self, table: DatasetTable) -> Listing:
        """What the file list behind the URL names."""
        if (fault := self._fault(self.site.name)) is not None:
            raise InputError(f"{self.site.shown}: {fault}")
        local = self.files / self.site.name
        try:
            fault = self._bring({self.site.name: self.site.itself()}).get(self.site.name)
            if fault is not None:
                raise Forbidden(fault)
            names = [below(row.file, self.files) for row in read_rows(local, table) if row.file is not None]
            samples = [name for name in dict.fromkeys(names) if name is not None and self._is_sample(name) and self._fault(name) is None]
            captions = [_with_ending(name, self.ending) for name in samples] if self.ending is not None else []
            wanted, faults = self._looked_up({name: self.site.beside(name) for name in (*samples, *captions)})
        except Unreachable as error:
            self._do_without(error)
            return list_rows(local, table, self.kind, self.funnel)
        except (Missing, Forbidden) as error:
            raise InputError(self._complaint(error)) from error
        return list_rows(local, table, self.kind, self.funnel, faults | self._bring(wanted))

    def _wanted(self, there: Mapping[str, Remote]) -> dict[str, Remote]:
        """Samples and their captions; what looks like a sample and cannot be kept is told to the funnel."""
        wanted: dict[str, Remote] = {}
        for name, file in there.items():
            if any(part.startswith(".") and part not in (".", "..") for part in name.split("/")):
                continue
            fault = other_ending(name, self.kind) or (self._fault(name) if self._is_sample(name) else None)
            if fault is not None:
                self._lose(name, fault)
            elif self._is_sample(name):
                wanted[name] = file
                caption = _with_ending(name, self.ending) if self.ending is not None else None
                if caption is not None and caption in there:
                    wanted[caption] = there[caption]
        return wanted

    def _is_sample(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in self.kind.suffixes

    def _fault(self, name: str) -> str | None:
        """Why a name cannot be a file's on this machine."""
        if not is_text(name):
            return NOT_TEXT
        parts = name.split("/")
        sound = all(part not in ("", ".", "..") and "\0" not in part and len(os.fsencode(part)) <= 255 for part in parts)
        return None if sound else "its name cannot be that of a file on this machine; rename it"

    def _lose(self, name: str, fault: str) -> None:
        self.funnel.total += 1
        self.funnel.lose("readable", fault, name)

    def _looked_up(self, wheres: Mapping[str, str]) -> tuple[dict[str, Remote], dict[str, str]]:
        """What is known of files by name, and why nothing is of the others, which are removed here too."""
        listed = self.site.listed(list(wheres.values()))

        def look(name: str) -> Remote | str:
            """The file of this name, or why there is none to be had."""
            where = wheres[name]
            try:
                return (listed[where] or NOT_THERE) if where in listed else self.site.info(where)
            except Missing:
                return NOT_THERE
            except Forbidden as error:
                return f"may not be read ({error})"

        found = dict(self._each(look, list(wheres)))
        faults = {name: fault for name, fault in found.items() if isinstance(fault, str)}
        self._forget(list(faults))
        return {name: file for name, file in found.items() if isinstance(file, Remote)}, faults

    def _bring(self, wanted: Mapping[str, Remote]) -> dict[str, str]:
        """Fetch what is not here as it is there; why some files could not be had, which then are not here either."""
        known = self._known()
        lacking = [name for name, file in wanted.items() if not self._is_here(name, file, known.get(name))]
        self._note([(name, wanted[name].stamp, 0) for name in lacking])

        def fetch(name: str) -> str | Unreachable | None:
            """Fetch the file of this name; why it cannot be had, or None where it is here."""
            try:
                self._fetch(name, wanted[name])
            except Missing:
                return NOT_THERE
            except Forbidden as error:
                return f"may not be read ({error})"
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                return "its name is that of a folder, or a folder in it that of a file"
            except Unreachable as error:
                return error
            return None

        faults: dict[str, str] = {}
        broken: tuple[str, Unreachable] | None = None
        with closing(self._each(fetch, lacking)) as fetching:
            for name, fault in fetching:
                if isinstance(fault, Unreachable):
                    broken = name, fault
                    break
                if fault is not None:
                    faults[name] = fault
        if broken is not None:  # counted here, where those that were under way have come
            name, error = broken
            missing = sum(not here for _, here in self._known().values())
            raise InputError(
                f"{self.site.shown}: {missing} of {len(wanted)} files could not be fetched; {name}: {error}. "
                "Those that came are kept: start again to go on"
            ) from error
        self._forget(list(faults))
        fetched = len(lacking) - len(faults)
        if fetched:
            self.funnel.notes.append(f"{fetched} files were fetched from {self.site.shown} and are kept in {self.files}")
        return faults

    def _is_here(self, name: str, file: Remote, known: tuple[str, bool] | None) -> bool:
        if known != (file.stamp, True) or not file.stamp:
            return False
        try:
            size = os.stat(self.files / name).st_size
        except OSError:
            return False
        return file.size is None or size == file.size

    def _fetch(self, name: str, file: Remote) -> None:
        target, partial = self.files / name, self.partial / uuid.uuid4().hex
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.site.fetch(file, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        self._note([(name, file.stamp, 1)])

    def _do_without(self, error: Unreachable) -> None:
        """Work with what is here; InputError if that is not all."""
        known = self._known()
        missing = sum(not here for _, here in known.values())
        if not known:
            raise InputError(self._complaint(error)) from error
        if missing:
            raise InputError(f"{self._complaint(error)}; {missing} of its {len(known)} files are not here yet") from error
        self.funnel.notes.append(f"{self._complaint(error)}: its files are those of the last time, in {self.files}")

    def _complaint(self, error: Exception) -> str:
        if isinstance(error, Forbidden):
            return f"{self.site.shown} may not be read ({error}); its file system takes credentials from the environment"
        if isinstance(error, Missing):
            return f"there is nothing at {self.site.shown} ({error})"
        return f"{self.site.shown} cannot be reached ({error})"

    def _each(self, task: Callable[[str], R], names: Sequence[str]) -> Generator[tuple[str, R]]:
        """Do something for each name in threads; after an error, or when closed, no more is begun and what is under way ends first."""
        pool = ThreadPoolExecutor(FETCHERS)
        try:
            for start in range(0, len(names), _TOGETHER):
                some = names[start : start + _TOGETHER]
                yield from zip(some, pool.map(task, some), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _known(self) -> dict[str, tuple[str, bool]]:
        """Stamp of every file of the last time, and whether it is here."""
        with self._lock, explained(self._database):
            rows = self._connection.execute("SELECT name, stamp, here FROM files").fetchall()
        return {name: (stamp, bool(here)) for name, stamp, here in rows}

    def _note(self, rows: Sequence[tuple[str, str, int]]) -> None:
        with self._lock, explained(self._database), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)

    def _forget(self, names: Sequence[str]) -> None:
        """Remove copies of what is not there any more."""
        for name in names:
            if self._fault(name) is None:
                with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                    (self.files / name).unlink()
        with self._lock, explained(self._database), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in names])


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other process works on the same copy."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        while (held := lock(root / "lock")) is None:
            time.sleep(_WAIT)
        with held:
            yield
    except OSError as error:
        raise InputError(f"[run] cache_dir: {root} cannot be written to ({error.strerror or error})") from error


def _ending(table: DatasetTable) -> str | None:
    """The ending of the files beside the samples that captions are in, if they are in any."""
    return BESIDE.get(table.captions) if isinstance(table, SampleTable) else None


def _with_ending(name: str, ending: str) -> str:
    return os.path.splitext(name)[0] + ending

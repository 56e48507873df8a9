"""What a URL leads to: its files as fsspec finds them, and how one of them is fetched."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import fsspec
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from ..errors import InputError

ATTEMPTS = 3
"""How often a file is asked for before the run is stopped."""
PAUSE = 0.5
"""Seconds before the second attempt; twice as long before the third."""
_FLAT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"}
"""File systems that list everything below a prefix at once; others are walked folder by folder."""
WORTH_LISTING = 50
"""From so many files in a folder on it is listed, instead of asking for each of them."""
_CHECKSUMS = ("ETag", "etag", "e_tag", "md5Hash", "md5", "content_md5", "Content-MD5", "blob_id", "sha256", "oid")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "mtime", "modified", "updated", "created")
_PACKAGES = {"http": "aiohttp", "https": "aiohttp"}
"""What fsspec's own classes need; the others are named after their packages."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class Missing(Exception):
    """There is no such file."""


class Forbidden(Exception):
    """The file may not be read."""


class Unreachable(Exception):
    """The server does not answer, or not sensibly."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One file: its full name for the file system, its size if that is known, and what changes with its content, if anything."""

    where: str
    size: int | None
    stamp: str


class Site:
    """The folder or file that a URL names. InputError if its protocol is not known or needs a package."""

    def __init__(self, url: str) -> None:
        self.shown = _without_secrets(url)
        self.protocol = url.partition("://")[0]
        self.is_web = self.protocol in ("http", "https")
        self._system = _file_system(url, self.protocol, self.shown)
        parts = urlsplit(url)
        bare = urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")) if self.is_web else url
        self.name = unquote(bare.rstrip("/").rpartition("/")[2]) if self.is_web else bare.rstrip("/").rpartition("/")[2]
        self._url = url
        self._folder = self._stripped(bare)

    def files(self) -> dict[str, Remote]:
        """All files below the folder by their names below it, hidden ones too."""
        with self._told():
            self._system.invalidate_cache()
            options = {} if self.protocol in _FLAT else {"on_error": "raise"}
            root = f"{self._folder}/" if self.is_web else self._folder
            found = self._system.find(root, detail=True, **options)
        prefix = f"{self._folder}/" if self._folder else ""
        files = {}
        for where, about in found.items():
            if where.startswith(prefix) and about.get("type", "file") == "file":
                name = unquote(where.removeprefix(prefix)) if self.is_web else where.removeprefix(prefix)
                files[name] = _remote(where, about)
        return {name: file for name, file in files.items() if name and not name.endswith("/")}

    def itself(self) -> Remote:
        """The file that the URL names."""
        where = self._url if self.is_web else self._folder
        with self._told():
            self._system.invalidate_cache()
            return _remote(where, self._system.info(where))

    def beside(self, name: str) -> str:
        """The full name of a file that the list behind the URL names."""
        home = self._folder.rpartition("/")[0]
        path = quote(name) if self.is_web else name
        return f"{home}/{path}" if home else path

    def listed(self, wheres: Sequence[str]) -> dict[str, Remote | None]:
        """What listings of the files' folders tell of them, None of those that are not there; nothing of folders with few of them."""
        by_folder: dict[str, set[str]] = {}
        for where in () if self.is_web else wheres:
            by_folder.setdefault(where.rpartition("/")[0], set()).add(where)
        found: dict[str, Remote | None] = {}
        for folder, wanted in by_folder.items():
            if len(wanted) >= WORTH_LISTING:
                with self._told():
                    listed = self._system.ls(folder, detail=True)
                found |= dict.fromkeys(wanted)
                found |= {about["name"]: _remote(about["name"], about) for about in listed if about["name"] in wanted}
        return found

    def info(self, where: str) -> Remote:
        """What is known of one file."""
        with self._told():
            return _remote(where, self._system.info(where))

    def fetch(self, file: Remote, target: Path) -> None:
        """Write a file's content to `target`, with some attempts if the server does not answer."""
        for attempt in range(ATTEMPTS):
            try:
                with self._told():
                    self._system.get_file(file.where, str(target))
                    size = target.stat().st_size
                if file.size is not None and size != file.size:
                    raise Unreachable(f"{size} bytes came instead of {file.size}")
                return
            except Unreachable:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(PAUSE * 2**attempt)

    def _stripped(self, url: str) -> str:
        return url.rstrip("/") if self.is_web else str(self._system._strip_protocol(url)).rstrip("/")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what a file system raises into Missing, Forbidden or Unreachable."""
        try:
            yield
        except Exception as error:  # each file system passes on what its own client library raises
            if isinstance(error, OSError) and error.errno in _FULL:
                raise InputError(f"[run] cache_dir: what {self.shown} has cannot be kept ({error.strerror})") from error
            raise _sorted(error, self.is_web) from error


def _sorted(error: Exception, is_web: bool) -> Exception:
    cause = error.__cause__
    status = getattr(error, "status", None) or getattr(cause, "status", None)
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if status in (401, 403) or isinstance(error, PermissionError):
        return Forbidden(reason)
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and not (is_web and cause is not None)):
        return Missing(reason)
    # fsspec says of every web address that does not answer that there is no such file, and has the reason as its cause
    return Unreachable(str(cause) or type(cause).__name__ if is_web and cause is not None else reason)


def _file_system(url: str, protocol: str, shown: str) -> Any:
    if protocol not in fsspec.available_protocols():
        raise InputError(f"{shown}: nothing is known of {protocol}://; fsspec reads {', '.join(sorted(fsspec.available_protocols()))}")
    try:
        return url_to_fs(url)[0]
    except ImportError as error:
        known = known_implementations.get(protocol, {}).get("class", protocol)
        package = _PACKAGES.get(protocol, known.split(".")[0])
        raise InputError(f"{shown} needs a package that is not installed ({error}): pip install {package}") from error
    except Exception as error:  # what a file system makes of an address or of missing credentials is its own matter
        raise InputError(f"{shown} cannot be used ({error})") from error


def _remote(where: str, about: Mapping[str, Any]) -> Remote:
    size = about.get("size")
    known = next((str(about[key]) for keys in (_CHECKSUMS, _TIMES) for key in keys if about.get(key)), "")
    size = size if isinstance(size, int) else None
    return Remote(where, size, f"{'' if size is None else size} {known}".strip())


def _without_secrets(url: str) -> str:
    """The URL without user, password and query, as messages show it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

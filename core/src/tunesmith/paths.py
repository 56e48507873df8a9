"""Paths that a config names: relative to the config file, not to where `tune` was started."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ValidationInfo


def _base(info: ValidationInfo | None) -> Path:
    return Path(info.context["base"]) if info is not None and info.context else Path()


def _named(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():  # which would be the folder that paths are relative to
        raise ValueError("names nothing; write a path, or take this out")
    return value


def _resolve_path(value: Path, info: ValidationInfo | None) -> Path:
    if "\0" in str(value):
        raise ValueError("a path cannot hold a NUL character")
    try:
        path = _base(info) / value.expanduser()
    except RuntimeError:
        raise ValueError("there is no such user, whose home this would be") from None
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError("the path, or a name in it, is too long for this system") from None
    return path


def _resolve_source(value: str, info: ValidationInfo) -> str:
    if not value.strip():
        raise ValueError("names nothing; write a folder or a Hub id, or take this out")
    folder = _resolve_path(Path(value), info)
    return str(folder) if os.path.isdir(folder) or value.startswith((".", "~", "/")) else value


def _resolve_output(value: Path) -> Path:
    return _resolve_path(value, None)


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _resolve_data(value: str, info: ValidationInfo) -> str:
    if not value.strip():
        raise ValueError("should name a folder, a file list or a URL")
    return value if is_url(value) else str(_resolve_path(Path(value), info))


def is_url(path: str) -> bool:
    """Whether a dataset's path is a URL such as s3://bucket/folder, and no path of this machine."""
    return bool(re.match(r"[a-z][a-z0-9+.-]+://", path))


DataPath: TypeAlias = Annotated[str, BeforeValidator(_as_text), AfterValidator(_resolve_data)]
"""Where a dataset's files are: a URL, or a path relative to the config file's folder."""

InputPath: TypeAlias = Annotated[Path, BeforeValidator(_named), AfterValidator(_resolve_path)]
"""A file or folder that a setting names; validation makes it relative to the config file's folder."""

OutputPath: TypeAlias = Annotated[Path, BeforeValidator(_named), AfterValidator(_resolve_output)]
"""A folder to write to, relative to where `tune` is started."""

ModelSource: TypeAlias = Annotated[str, AfterValidator(_resolve_source)]
"""A local folder, relative to the config file's folder, or else a Hub id."""

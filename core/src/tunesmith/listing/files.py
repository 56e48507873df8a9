"""Which files a dataset has, wherever they are: in a folder, in a file list, behind a URL, or as a plugin lists them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fsspec.core import strip_protocol

from ..config.datasets import DatasetTable
from ..data.funnel import Funnel
from ..errors import InputError
from ..kinds import Kind
from ..paths import is_url
from ..plugin import Settings
from ..sources import Entry, Listing, SourcePlugin
from .folder import OUTSIDE, list_folder, refusal, within
from .lists import LISTS, list_rows
from .mirror import list_url

_LOCAL = ("file://", "local://")


def list_files(table: DatasetTable, kind: Kind[Any], folder: Path, funnel: Funnel, source: SourcePlugin[Any, Any] | None = None) -> Listing:
    """The files of a dataset in the order of their names; none of them is opened, but for a file list itself.

    All files are counted in `funnel.total`, and those that cannot be used are told to it. Files from elsewhere are kept
    below `folder`, which is this dataset's own. `source` is the plugin that the table's `source` names. InputError if
    there is nothing to list.
    """
    if table.source is not None and source is not None:
        return _from_plugin(source, table.source, kind, folder, funnel)
    name = table.path or ""
    if is_url(name) and not name.startswith(_LOCAL):
        return list_url(name, table, kind, folder, funnel)
    path = Path(strip_protocol(name) if is_url(name) else name)
    if path.is_dir():
        if table.file_column is not None:
            raise InputError(
                f"`file_column` is for file lists ({', '.join(LISTS)}), and the dataset's `path` {name!r} is a folder; leave it out"
            )
        return list_folder(path, kind, funnel)
    if path.suffix.lower() in LISTS and path.is_file():
        return list_rows(path, table, kind, funnel)
    lists = ", ".join(LISTS)
    raise InputError(f"the dataset's `path` {name!r} is not a folder, nor a file list ({lists}); relative paths start at the config file")


def _from_plugin(source: SourcePlugin[Any, Any], told: dict[str, Any], kind: Kind[Any], folder: Path, funnel: Funnel) -> Listing:
    """What the plugin lists and can be used, in the order of the names; what it lost counts too."""
    settings: Settings = source.source_type.model_validate({key: value for key, value in told.items() if key != "plugin"})
    before = _lost(funnel)
    listing = source.listing(settings, kind, folder, funnel)
    funnel.total += len(listing.entries) + _lost(funnel) - before
    homes = tuple(Path(os.path.realpath(home)) for home in listing.homes)
    inside: dict[str, bool] = {}
    sound: list[Entry] = []
    for entry in sorted(listing.entries, key=lambda entry: entry.name):
        parent = os.path.dirname(entry.where)
        if parent not in inside:
            inside[parent] = within(parent, homes)
        reason = refusal(entry.where, homes) if inside[parent] else OUTSIDE
        if reason is None:
            sound.append(entry)
        else:
            funnel.lose("readable", reason, entry.name)
    return Listing(sound, homes)


def _lost(funnel: Funnel) -> int:
    return sum(lost.count for lost in funnel.losses)

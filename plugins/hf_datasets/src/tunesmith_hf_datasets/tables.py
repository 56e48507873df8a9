"""Loading a dataset's table, and finding the column of its files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tunesmith import InputError, Kind

if TYPE_CHECKING:
    from .plugin import HubDataset

_ENDINGS = {"Image": ".png", "Video": ".mp4", "Audio": ".wav"}
"""Types of columns, each with an ending that a kind has that reads what is in them."""
_BYTES = ("binary", "large_binary")


def load(settings: HubDataset) -> Any:
    """The rows of a split; InputError if they cannot be had. Only data are read: no code of the dataset is run."""
    import datasets

    path = settings.dataset
    try:
        if any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json")):
            return _split(datasets.load_from_disk(path), settings)
        return datasets.load_dataset(path, settings.config, split=settings.split, revision=settings.revision)
    except InputError:
        raise
    except Exception as error:  # its readers pass on what the Hub and every format raise
        raise InputError(f"dataset {path!r} cannot be loaded: {str(error).strip() or type(error).__name__}") from error


def file_column(table: Any, settings: HubDataset, kind: Kind[Any]) -> str:
    """The column that holds the files; InputError with the columns that are there if none or several might."""
    types: dict[str, str] = {name: type(feature).__name__ for name, feature in table.features.items()}
    there = ", ".join(f"{name!r} ({_type(table, name)})" for name in types)
    asked = settings.file_column
    if asked is not None:
        if asked not in types:
            raise InputError(f"dataset {settings.dataset!r} has no column {asked!r}, but {there}")
        if types[asked] not in _ENDINGS and _type(table, asked) not in _BYTES and not _is_plain(table, asked):
            raise InputError(f"column {asked!r} of dataset {settings.dataset!r} holds no files; its columns are {there}")
        return asked
    found = [name for name, kind_of in types.items() if _ENDINGS.get(kind_of) in kind.suffixes]
    found = found or [name for name in types if _is_plain(table, name)]
    if len(found) != 1:
        which = f"several columns with files: {', '.join(map(repr, found))}" if found else f"no column with files of this kind, but {there}"
        raise InputError(f"dataset {settings.dataset!r} has {which}; name the right one in `file_column`")
    return found[0]


def undecoded(table: Any, column: str) -> Any:
    """The table with that column alone, whose values then are bytes or paths."""
    files = table.select_columns([column])
    feature = files.features[column]
    return files if type(feature).__name__ not in _ENDINGS else files.cast_column(column, type(feature)(decode=False))


def _split(loaded: Any, settings: HubDataset) -> Any:
    """The split of what `save_to_disk` wrote; a single table has no name of its own."""
    name, _, part = settings.split.partition("[")
    if part:
        raise InputError(f"dataset {settings.dataset!r} was written by `save_to_disk`, of which only whole splits can be taken")
    if not hasattr(loaded, "keys"):
        return loaded
    if name not in loaded:
        raise InputError(f"dataset {settings.dataset!r} has no split {name!r}, but {', '.join(map(repr, loaded))}")
    return loaded[name]


def _is_plain(table: Any, name: str) -> bool:
    """Whether a column holds files as the library stores them, in a table that lacks its note of which columns do."""
    feature = table.features[name]
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"} and getattr(feature["bytes"], "dtype", None) in _BYTES


def _type(table: Any, name: str) -> str:
    feature = table.features[name]
    return str(getattr(feature, "dtype", None) or type(feature).__name__) if type(feature).__name__ == "Value" else type(feature).__name__

"""The plugin: lists the rows of a dataset that hold files, with their captions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator

from tunesmith import Entry, Funnel, InputError, Kind, Listing, ModelSource, NoSettings, SampleTable, Settings, SourcePlugin, Stage

from .files import Kept, keep_files
from .tables import file_column, load, undecoded

CAPTION_COLUMNS = ("caption", "text")
"""Columns of captions where the table names none."""


class HubDataset(Settings):
    """`source = { plugin = "hf_datasets", ... }`: which rows of which dataset."""

    dataset: ModelSource
    """Id on the Hub, or a folder: of parquet files, of pictures, or what `save_to_disk` wrote."""
    config: str | None = Field(None, min_length=1)
    """Configuration of the dataset; needed where it has several."""
    split: str = Field("train", min_length=1)
    """Which rows; a part as in `train[:10%]` too."""
    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit on the Hub."""
    file_column: str | None = Field(None, min_length=1)
    """Column that holds the files; the only one of the dataset's kind when not given."""

    @field_validator("dataset", mode="wrap")
    @classmethod
    def _there(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> str:
        place: str = read(value)
        base = info.context["base"] if info.context else ""
        if os.path.isfile(os.path.join(base, os.path.expanduser(value))):
            raise ValueError("is a file; give the folder that it lies in, whose parquet files are read together")
        if value.startswith((".", "~", "/")) and not os.path.isdir(place):
            raise ValueError(f"there is no folder {place}; a dataset of the Hub is named as it is there, NAME or OWNER/NAME")
        return place


class HfDatasets(SourcePlugin[NoSettings, HubDataset]):
    """Lists the files of a Hugging Face dataset."""

    stage = Stage.LOAD

    @classmethod
    def dataset_name(cls, settings: HubDataset) -> str:
        """The dataset's own name."""
        return settings.dataset

    def listing(self, settings: HubDataset, kind: Kind[Any], folder: Path, funnel: Funnel) -> Listing:
        """The files of a dataset's rows; what lies inside of its tables is written out below `folder` once.

        The rows' captions are the entries' columns. InputError if the dataset cannot be loaded or holds no such files.
        """
        table = load(settings)
        column = file_column(table, settings, kind)
        captions = _captions(table, settings, kind)
        own = folder / table._fingerprint  # changes with the rows; the library keeps its own caches by it
        kept = keep_files(undecoded(table, column), column, kind, own, _homes(settings))
        for row, reason in sorted(kept.faults.items()):
            funnel.lose("readable", reason, f"row {row}")
        return Listing(_entries(table, captions, kept), kept.homes)


def _entries(table: Any, captions: list[str], kept: Kept) -> list[Entry]:
    """An entry for each row that has a file."""
    rows = table.select_columns(captions) if captions else [{}] * len(table)
    return [
        Entry(f"{number:08}{os.path.splitext(where)[1].lower()}", where, columns)
        for number, columns in enumerate(rows)
        if (where := kept.files.get(number)) is not None
    ]


def _captions(table: Any, settings: HubDataset, kind: Kind[Any]) -> list[str]:
    """The columns that captions are in, if they are in columns; InputError if none is there."""
    asked = kind.table
    if not isinstance(asked, SampleTable) or asked.captions != "column":
        return []
    wanted = CAPTION_COLUMNS if asked.caption_column is None else (asked.caption_column,)
    found = [name for name in wanted if name in table.column_names]
    if not found:
        names = " or ".join(map(repr, wanted))
        raise InputError(
            f"dataset {settings.dataset!r} has no column {names} for captions, but {', '.join(map(repr, table.column_names))}: "
            "name the right one in `caption_column`"
        )
    return found


def _homes(settings: HubDataset) -> tuple[Path, ...]:
    """Where files may lie that a dataset names by path: in its folder, or where those of the Hub are kept."""
    if os.path.isdir(settings.dataset):
        return (Path(os.path.realpath(settings.dataset)),)
    from datasets import config
    from huggingface_hub import constants

    return tuple(Path(os.path.realpath(home)) for home in (config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE))

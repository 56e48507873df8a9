"""Where the files of a dataset come from, if not from a folder, a file list or a URL: listings that plugins make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from .plugin import Plugin, Settings

if TYPE_CHECKING:
    from .data.funnel import Funnel
    from .kinds import Kind

P = TypeVar("P", bound=Settings)
Q = TypeVar("Q", bound=Settings)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a dataset: its name in it, where it lies on this machine, and what the list says of it by column."""

    name: str
    where: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """The files of a dataset. A file may be a link only to what lies in one of `homes`, which are real paths."""

    entries: Sequence[Entry]
    homes: Sequence[Path] = ()


class SourcePlugin(Plugin[P], Generic[P, Q]):
    """A plugin that lists files from elsewhere: `class Albums(SourcePlugin[NoSettings, AlbumSource])`.

    `source = { plugin = NAME, ... }` in a dataset's table switches it on; the second settings are those of `source`.
    """

    source_type: ClassVar[type[Settings]]
    """The settings of `source`, besides `plugin`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            origin, arguments = get_origin(base), get_args(base)
            if isinstance(origin, type) and issubclass(origin, SourcePlugin) and isinstance(arguments[-1], type):
                cls.source_type = arguments[-1]

    @classmethod
    def dataset_name(cls, settings: Q) -> str:
        """What a dataset is called whose table has no name, such as the last part of a path; the plugin's name if empty."""
        return ""

    def listing(self, settings: Q, kind: Kind[Any], folder: Path, funnel: Funnel) -> Listing:
        """The files of a dataset, brought to this machine; `folder` is the source's own, below the cache.

        What cannot be had is told to `funnel.lose`, and counts with the entries. InputError if nothing can.
        """
        raise NotImplementedError(f"{type(self).__name__} lists no files")

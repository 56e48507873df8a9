"""Which plugins are installed, read from metadata alone, and the import of exactly the one that is asked for."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .hookspecs import GROUP
from .words import nearest, shown

if TYPE_CHECKING:
    from .plugin import Plugin

DISTRIBUTION = "tunesmith"


@dataclass(frozen=True, order=True)
class InstalledPlugin:
    """A plugin as its distribution announces it; nothing of it has been imported."""

    name: str
    distribution: str
    version: str
    summary: str
    entry_point: str

    @property
    def origin(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"


def installed(group: str = GROUP) -> dict[str, list[InstalledPlugin]]:
    """Every installed plugin by name, sorted; more than one where distributions claim the same name.

    Of another group of entry points, what stands in that.
    """
    found: dict[str, list[InstalledPlugin]] = {}
    for plugin in sorted(_announced(group)):
        found.setdefault(plugin.name, []).append(plugin)
    return found


def load_class(name: str, plugins: Mapping[str, list[InstalledPlugin]] | None = None) -> type[Plugin[Any]]:
    """Import one plugin and nothing else; InputError if it is not installed, provided twice, or cannot be imported."""
    from .contract import complaints  # which a list of plugins does not need
    from .plugin import Plugin

    candidates = (installed() if plugins is None else plugins).get(name, [])
    if not candidates:
        raise InputError(_not_installed(name, installed() if plugins is None else plugins))
    claim, loaded = load_entry_point("plugin", name, candidates, GROUP)
    if not (isinstance(loaded, type) and issubclass(loaded, Plugin)):
        raise InputError(f"{claim} cannot be used: {'; '.join(complaints(loaded))}")
    return loaded


def load_entry_point(what: str, name: str, candidates: Sequence[InstalledPlugin], group: str) -> tuple[str, Any]:
    """What the one candidate's entry point names, and how a complaint about it begins; InputError if it cannot be imported."""
    if len(candidates) > 1:
        raise InputError(f"{what} {name!r} is provided by {' and '.join(one.origin for one in candidates)}; uninstall all but one")
    [plugin] = candidates
    claim = f"{what} {name!r} ({plugin.origin}) is installed but"
    try:
        return claim, metadata.EntryPoint(name, plugin.entry_point, group).load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises; the user is told what and where
        raise InputError(f"{claim} cannot be imported: {cause(error)}") from error


def described(name: str) -> str:
    """A plugin as errors name it: with its distribution, where exactly one is known to bring it."""
    candidates = installed().get(name, [])
    return f"plugin {name!r} ({candidates[0].origin})" if len(candidates) == 1 else f"plugin {name!r}"


def cause(error: BaseException) -> str:
    """The error and the line that raised it, in one line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())


def catalogue() -> dict[str, str]:
    """The official plugins: names as `pip install 'tunesmith[NAME]'` wants them, by the plugin's own name."""
    try:
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    return {_canonical(extra).replace("-", "_"): extra for extra in extras}


def _announced(group: str) -> Iterator[InstalledPlugin]:
    seen: set[str] = set()
    for distribution in metadata.distributions():
        entries = _entries(_text(distribution, "entry_points.txt"), group)
        if not entries:
            continue
        about = message_from_string(_text(distribution, "METADATA"))
        project = _fact(about, "Name")
        if _canonical(project) in seen:  # a copy further down the path, which Python would not import
            continue
        seen.add(_canonical(project))
        for name, value in entries.items():
            yield InstalledPlugin(name, project, _fact(about, "Version"), _fact(about, "Summary", ""), value)


def _text(distribution: metadata.Distribution, name: str) -> str:
    """A file of a distribution's metadata, empty where there is none or it is no text: what is a stranger's does no harm."""
    try:
        return distribution.read_text(name) or ""
    except (OSError, UnicodeDecodeError):
        return ""


def _fact(about: Message, key: str, absent: str = "unknown") -> str:
    return str(about.get(key, absent))


def _entries(text: str, group: str) -> dict[str, str]:
    """A group's entries; read by hand, so that no other project's broken file can do harm."""
    entries: dict[str, str] = {}
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]").strip()
        elif line and not line.startswith(("#", ";")) and section == group:
            name, _, value = line.partition("=")
            entries[name.strip()] = value.strip()
    return entries


def _not_installed(name: str, plugins: Mapping[str, Any]) -> str:
    message = f"no plugin named {shown(name)} is installed"
    official = catalogue()
    if name in official:
        return f"{message}; try: pip install '{DISTRIBUTION}[{official[name]}]'"
    near = nearest(name, {*plugins, *official})
    if near is None:
        there = ", ".join(plugins) or "none"
        return f"{message}; installed: {there}"
    install = "" if near in plugins else f" try: pip install '{DISTRIBUTION}[{official[near]}]'"
    return f"{message}; did you mean {near!r}?{install}"


def _canonical(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()

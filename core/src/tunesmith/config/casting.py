"""Which plugins take part: `[model]` and `[plugins.*]`, their classes, settings, relations and order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contract import CORE, complaints, provider_complaints
from ..discovery import InstalledPlugin, cause, load_class
from ..errors import InputError
from ..ordering import ordered
from ..plugin import Plugin, Settings
from ..words import bare, shown
from .datasets import CORE_TABLES
from .faults import not_a_table, validate
from .lines import Key
from .problems import Findings

Installed = Mapping[str, list[InstalledPlugin]]
_FAMILY = ("model", "family")


@dataclass
class Cast:
    """The active plugins, by name; the family is one of them."""

    family: str = ""
    classes: dict[str, type[Plugin[Any]]] = field(default_factory=dict)
    settings: dict[str, Settings] = field(default_factory=dict)
    order: tuple[str, ...] = ()


def read_cast(data: Mapping[str, Any], known: Installed, base: Path, findings: Findings) -> Cast:
    """Import every active plugin and nothing else, and check it, its settings, and all of them together."""
    casting = _Casting(known, base, findings)
    casting.read_family(data.get("model"))
    casting.read_plugins(data.get("plugins", {}))
    casting.read_datasets(data.get("datasets", []))
    casting.check_relations()
    if casting.cast.family and len(casting.cast.classes) == len(casting.keys):  # otherwise what is missing has been told
        casting.check_together()
    return casting.cast


class _Casting:
    """The cast as it is being read; `keys` has the tables of all that are asked for, also of those that cannot take part."""

    def __init__(self, known: Installed, base: Path, findings: Findings) -> None:
        self.known = known
        self.base = base
        self.findings = findings
        self.cast = Cast()
        self.keys: dict[str, Key] = {}
        self.off: set[str] = set()

    def read_family(self, table: Any) -> None:
        """Take in the family that `[model]` names, with the rest of the table as its settings; what is wrong goes to the findings."""
        if table is None:
            self.findings.add(("model",), 'missing table; write [model] with family = "..."')
        elif not isinstance(table, dict):
            self.findings.add(("model",), not_a_table(table, "[model]"))
        elif "family" not in table:
            self.findings.add(("model",), "missing setting 'family': the plugin of a model family, one of those that `tune plugins` lists")
        elif not isinstance(table["family"], str):
            self.findings.add(_FAMILY, f"family = {shown(table['family'])}: should be the name of a plugin, in quotes")
        else:
            name = self.cast.family = table["family"]
            self.keys[name] = ("model",)
            plugin = self._load(name, _FAMILY)
            if plugin is not None and self._is_family(name, plugin):
                self._admit(name, plugin, {key: value for key, value in table.items() if key != "family"})

    def _is_family(self, name: str, plugin: type[Plugin[Any]]) -> bool:
        from ..family import FamilyPlugin  # brings torch

        if issubclass(plugin, FamilyPlugin):
            return True
        self.findings.add(_FAMILY, f"plugin {name!r} is no model family; it is switched on by [plugins.{bare(name)}]")
        return False

    def read_plugins(self, tables: Any) -> None:
        """Take in the plugins whose tables stand below `[plugins]`, unless they are switched off; what is wrong goes to the findings."""
        if not isinstance(tables, dict):
            self.findings.add(("plugins",), f"{shown(tables)} stands where tables should be; write [plugins.NAME] for each plugin")
            return
        for name, table in tables.items():
            if not isinstance(table, dict):
                self.findings.add(("plugins", name), not_a_table(table, f"[plugins.{bare(name)}]"))
            else:
                self._read_plugin(name, table)

    def _read_plugin(self, name: str, table: Mapping[str, Any]) -> None:
        key = ("plugins", name)
        enabled = table.get("enabled", True)
        if not isinstance(enabled, bool):
            self.findings.add((*key, "enabled"), f"enabled = {shown(enabled)}: should be true or false")
        elif not enabled:
            self.off.add(name)
        elif name == self.cast.family:
            self.findings.add(key, "is the model family, whose settings belong in [model]")
        else:
            self.keys[name] = key
            plugin = self._load(name, key)
            if plugin is not None:
                self._admit(name, plugin, {key: value for key, value in table.items() if key != "enabled"})

    def read_datasets(self, tables: Any) -> None:
        """Switch on the plugins that datasets name as their kind or source."""
        from ..kinds import KindPlugin  # which bring torch
        from ..sources import SourcePlugin

        for number, table in enumerate(tables if isinstance(tables, list) else ()):
            if not isinstance(table, dict):
                continue
            kind, source = table.get("kind"), table.get("source")
            if isinstance(kind, str) and kind not in CORE_TABLES:
                self._read_asked_for(kind, ("datasets", number, "kind"), KindPlugin, "brings no kind of dataset")
            if isinstance(source, dict) and isinstance(source.get("plugin"), str):
                self._read_asked_for(source["plugin"], ("datasets", number, "source", "plugin"), SourcePlugin, "lists no files")

    def _read_asked_for(self, name: str, key: Key, base: type[Plugin[Any]], otherwise: str) -> None:
        plugin = self.cast.classes.get(name)
        if plugin is None and name not in self.keys:
            self.keys[name] = key
            plugin = self._load(name, key)
            if plugin is not None and issubclass(plugin, base):
                self._admit(name, plugin, {})
        if plugin is not None and not issubclass(plugin, base):
            self.findings.add(key, f"plugin {name!r} {otherwise}; `tune plugins` tells what each is for")

    def _load(self, name: str, key: Key) -> type[Plugin[Any]] | None:
        """Import a plugin; None, with the reasons among the findings, if it cannot take part."""
        if name == CORE:
            self.findings.add(key, f"{CORE!r} is the name of the core's own part in a run and no plugin")
            return None
        try:
            plugin = load_class(name, self.known)
        except InputError as error:
            self.findings.add(key, str(error))
            return None
        wrong = complaints(plugin)
        for complaint in wrong:
            self.findings.add(key, f"plugin {name!r} ({self.known[name][0].origin}) breaks the contract: {complaint}")
        return None if wrong else plugin

    def _admit(self, name: str, plugin: type[Plugin[Any]], table: Mapping[str, Any]) -> None:
        """Take a sound plugin in and read its settings."""
        self.cast.classes[name] = plugin
        try:
            settings, faults = validate(plugin.settings_type, table, self.base)
        except Exception as error:  # pydantic passes on all but ValueError from what a stranger's settings check
            origin = self.known[name][0].origin
            self.findings.add(self.keys[name], f"plugin {name!r} ({origin}) cannot check its settings: {cause(error)}")
            return
        for key, message in faults:
            self.findings.add((*self.keys[name], *key), message)
        if settings is not None:
            self.cast.settings[name] = settings

    def check_relations(self) -> None:
        """Add to the findings what a plugin requires and lacks, and which plugins cannot be on together, each pair once."""
        told: set[frozenset[str]] = set()
        for name, plugin in self.cast.classes.items():
            for other in plugin.requires:
                if other not in self.keys:
                    state = ", which is switched off" if other in self.off else ""
                    self.findings.add(self.keys[name], f"plugin {name!r} requires [plugins.{bare(other)}]{state}")
            for other, reason in plugin.conflicts.items():
                pair = frozenset((name, other))
                if other in self.keys and pair not in told:
                    told.add(pair)
                    self.findings.add(self.keys[name], f"plugin {name!r} cannot be on together with {other!r}: {reason}")

    def check_together(self) -> None:
        """Put the plugins in order; hooks without exactly one provider, and an order that cannot be had, go to the findings."""
        for complaint in provider_complaints(self.cast.classes):
            named = [name for name in self.keys if repr(name) in complaint]
            self.findings.add(self.keys[named[-1]] if named else _FAMILY, complaint)
        try:
            self.cast.order = tuple(ordered(self.cast.classes))
        except InputError as error:
            named = [name for name in self.keys if name in str(error).partition(": ")[2].split(" -> ")]
            self.findings.add(self.keys[named[-1]], str(error))

"""What a plugin class must be, checked before anything loads; each complaint is a sentence."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from .hooks import PROVIDED
from .hookspecs import GROUP, Hooks
from .plugin import Lever, Plugin, Settings, Stage

CORE = "core"
"""Name of the core's own implementations among the plugins."""
_SPECS = {name: inspect.signature(spec) for name, spec in vars(Hooks).items() if hasattr(spec, f"{GROUP}_spec")}


def implementations(plugin: type[Plugin[Any]]) -> dict[str, bool]:
    """The hooks that a class implements; True where it wraps."""
    found: dict[str, bool] = {}
    for name, method in inspect.getmembers(plugin, callable):
        options = getattr(method, f"{GROUP}_impl", None)
        if options is not None:
            found[name] = bool(options["wrapper"])
    return found


def complaints(plugin: Any) -> list[str]:
    """What is wrong with a plugin class, a sentence each; nothing if it keeps the contract."""
    if not (isinstance(plugin, type) and issubclass(plugin, Plugin)):
        return [f"{plugin!r} is not a subclass of tunesmith.Plugin; the entry point must name the class itself"]
    name = plugin.__name__
    found: list[str] = []
    if not hasattr(plugin, "settings_type"):
        found.append(f"{name} does not name its settings: write class {name}(Plugin[MySettings])")
    elif not issubclass(plugin.settings_type, Settings):
        found.append(f"{name}'s settings {plugin.settings_type.__name__} are no subclass of tunesmith.Settings")
    for relation in ("outside", "inside", "requires"):
        names = getattr(plugin, relation)
        if isinstance(names, str):
            found.append(f"{name}.{relation} is text; write a tuple of names, with a comma behind a single one")
        elif not (isinstance(names, Collection) and all(isinstance(other, str) for other in names)):
            found.append(f"{name}.{relation} is {names!r}; write a tuple of names")
    if not (isinstance(plugin.conflicts, Mapping) and all(isinstance(part, str) for pair in plugin.conflicts.items() for part in pair)):
        found.append(f"{name}.conflicts is {plugin.conflicts!r}; write a dict of names, each with the reason")
    if not (isinstance(plugin.levers, tuple) and all(isinstance(lever, Lever) for lever in plugin.levers)):
        found.append(f"{name}.levers is {plugin.levers!r}; write a tuple of tunesmith.Lever")
    if not isinstance(getattr(plugin, "stage", None), Stage):
        found.append(f"{name} has no stage: give it one of {', '.join(stage.name for stage in Stage)}")
    if not plugin.__doc__:
        found.append(f"{name} has no docstring: say in one sentence what it does")
    if plugin.__eq__ is not object.__eq__:
        found.append(f"{name} defines equality (is it a dataclass?), and equal plugins cannot be told apart: hold data, do not be data")
    hooks = implementations(plugin)
    for hook, wraps in hooks.items():
        found += _hook_complaints(plugin, hook, wraps)
    for hook in _SPECS:
        if callable(getattr(plugin, hook, None)) and hook not in hooks:
            found.append(f"{name}.{hook} is named like a hook but is not marked: write @hookimpl above it")
    return found + _data_complaints(plugin)


def _data_complaints(plugin: type[Plugin[Any]]) -> list[str]:
    """What a plugin that brings a kind or a source of datasets lacks: without it the datasets would have no files."""
    from .config.datasets import DatasetTable
    from .kinds import Kind, KindPlugin  # which bring torch
    from .sources import SourcePlugin

    name, found = plugin.__name__, []
    if issubclass(plugin, KindPlugin):
        kind = getattr(plugin, "kind", None)
        if not (isinstance(kind, type) and issubclass(kind, Kind)):
            return [f"{name} brings no kind: write kind = MyKind, a subclass of tunesmith.Kind"]
        lacking = [attribute for attribute in ("table_type", "suffixes", "probing", "modalities") if not hasattr(kind, attribute)]
        lacking += sorted(kind.__abstractmethods__)
        if lacking:
            found.append(f"{name}'s kind {kind.__name__} lacks {', '.join(lacking)}")
        elif not (isinstance(kind.table_type, type) and issubclass(kind.table_type, DatasetTable)):
            found.append(f"{kind.__name__}.table_type is no subclass of tunesmith.DatasetTable")
    if issubclass(plugin, SourcePlugin):
        settings = getattr(plugin, "source_type", None)
        if not (isinstance(settings, type) and issubclass(settings, Settings)):
            found.append(f"{name} does not name the settings of `source`: write class {name}(SourcePlugin[MySettings, MySource])")
        if plugin.listing is SourcePlugin.listing:
            found.append(f"{name} lists no files: it has no method `listing`")
    return found


def _hook_complaints(plugin: type[Plugin[Any]], hook: str, wraps: bool) -> list[str]:
    where = f"{plugin.__name__}.{hook}"
    if hook not in _SPECS:
        near = difflib.get_close_matches(hook, _SPECS, 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        return [f"{where} is marked as a hook, but there is none of that name{guess}"]
    method = inspect.unwrap(getattr(plugin, hook))
    allowed = list(_SPECS[hook].parameters)
    unknown = [name for name in inspect.signature(method).parameters if name not in allowed]
    found = [f"{where} asks for {', '.join(unknown)}; {hook} offers {', '.join(allowed[1:])}"] if unknown else []
    generates = inspect.isgeneratorfunction(method)
    if wraps and not generates:
        found.append(f"{where} is a wrapper without a yield")
    if generates and not wraps:
        found.append(f"{where} yields, but is not marked @hookimpl(wrapper=True)")
    if wraps and hook == "log":
        found.append(f"{where} wraps log, but observers are told one by one; implement it plainly")
    return found


def provider_complaints(active: Mapping[str, type[Plugin[Any]]]) -> list[str]:
    """What is wrong with who provides what: the first three hooks want exactly one provider each.

    `active` has no entry for the core, whose own objective provides `compute_loss` where no plugin does.
    """
    found: list[str] = []
    for hook in PROVIDED:
        providers = sorted(name for name, plugin in active.items() if implementations(plugin).get(hook) is False)
        if len(providers) > 1:
            found.append(f"{hook} is provided by {' and '.join(map(repr, providers))}; keep one")
        elif not providers and hook != "compute_loss":
            found.append(f"{hook} is provided by no active plugin; `[model] family` must name a plugin that does")
    return found

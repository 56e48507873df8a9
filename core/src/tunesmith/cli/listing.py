"""The installed plugins as plain values, checked if asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..contract import CORE, complaints
from ..discovery import InstalledPlugin, load_class
from ..errors import InputError


def describe(installed: Mapping[str, list[InstalledPlugin]], check: bool) -> list[dict[str, Any]]:
    """Every plugin with what is wrong with it: one name in two distributions always, the rest only if `check` imports it."""
    return [
        {**asdict(plugin), "checked": check, "problems": _problems(plugin.name, installed, check)}
        for candidates in installed.values()
        for plugin in candidates
    ]


def _problems(name: str, installed: Mapping[str, list[InstalledPlugin]], check: bool) -> list[str]:
    if name == CORE:
        return [f"{CORE!r} is the name of the core's own part in a run and no plugin"]
    if not check and len(installed[name]) == 1:
        return []
    try:
        return complaints(load_class(name, installed))
    except InputError as error:
        return [str(error)]

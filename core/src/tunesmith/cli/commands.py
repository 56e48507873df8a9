"""Commands that plugins bring: listed from metadata alone, and imported when one of them is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import InputError

if TYPE_CHECKING:
    from ..discovery import InstalledPlugin

COMMANDS = "tunesmith.commands"
"""The group of entry points that name a Typer app each."""


class WithPlugins(TyperGroup):
    """The commands of `tune`, and after them those of plugins. The core's own names cannot be taken."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The core's names, then those of plugins."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in _announced() if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command, of the core if it has one of this name; None if there is none."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        claims = _announced().get(cmd_name)
        return PluginCommand(cmd_name, claims) if claims else None

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Name the commands of plugins that nobody can call."""
        own = super().list_commands(ctx)
        for name, claims in _announced().items():
            if name in own:
                origins = " and ".join(claim.origin for claim in claims)
                formatter.write_paragraph()
                formatter.write_text(f"left out: a command {name!r} of {origins}; the name is the core's")
        super().format_epilog(ctx, formatter)


class PluginCommand(TyperCommand):
    """A plugin's command as the list shows it; what it does is imported when it is called."""

    def __init__(self, name: str, claims: list[InstalledPlugin]) -> None:
        told = claims[0].summary if len(claims) == 1 else ""
        super().__init__(name, help=told or f"Commands of {' and '.join(claim.origin for claim in claims)}.", callback=None)
        self.claims = claims

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the plugin's own command; InputError if it cannot be had."""
        return typer.main.get_command(_load(self.name or "", self.claims)).make_context(info_name, args, parent=parent, **extra)


def _announced() -> Mapping[str, list[InstalledPlugin]]:
    from ..discovery import installed  # reads the metadata of every distribution, which other commands need not wait for

    return installed(COMMANDS)


def _load(name: str, claims: list[InstalledPlugin]) -> typer.Typer:
    from ..discovery import load_entry_point

    head, loaded = load_entry_point("command", name, claims, COMMANDS)
    if not isinstance(loaded, typer.Typer):
        raise InputError(f"{head} cannot be used: its entry point names {type(loaded).__name__} and no Typer app")
    return loaded

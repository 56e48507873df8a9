"""How the commands' answers look; user text is printed as it is, never as markup."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = {"wrapper": "wraps", "provider": "provides", "call": "is called"}


def fail(error: BaseException) -> None:
    """Tell an error on stderr: red on a terminal, its bare text elsewhere."""
    text = str(error)
    if not sys.stderr.isatty():
        print(text, file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(text, style="red"))


def plugin_table(plugins: Sequence[Mapping[str, Any]]) -> str:
    """One line per plugin, aligned, and what is wrong with it below."""
    if not plugins:
        return "no plugins are installed"
    rows = [(plugin["name"], f"{plugin['distribution']} {plugin['version']}", _state(plugin)) for plugin in plugins]
    names, origins, states = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines: list[str] = []
    for plugin, (name, origin, state) in zip(plugins, rows, strict=True):
        shown_state = f"{state:{states}}  " if states else ""
        lines.append(f"{name:{names}}  {origin:{origins}}  {shown_state}{plugin['summary']}".rstrip())
        lines += [f"  {problem}" for problem in plugin["problems"]]
    return "\n".join(lines)


def _state(plugin: Mapping[str, Any]) -> str:
    if plugin["problems"]:
        return "BROKEN"
    return "OK" if plugin["checked"] else ""


def nesting(hooks: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """For each hook those who take part: wrappers from the outside in, each one level deeper."""
    lines: list[str] = []
    for hook, parts in hooks.items():
        lines.append(hook)
        depth = 1
        for name, kind in parts:
            lines.append(f"{'  ' * depth}{name} {_KINDS[kind]}")
            depth += kind == "wrapper"
        if not parts:
            lines.append("  nobody")
    return "\n".join(lines)

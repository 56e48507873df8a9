"""Weights that one plugin packs and another needs as they are: neither knows of the other, so the core sees it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from .hooks import blamed_on
from .plugin import Plugin

if TYPE_CHECKING:
    from .config import Config
    from .family import Family


def needed_but_packed(plugins: Collection[Plugin[Any]], config: Config, family: Family) -> Iterator[tuple[str, str]]:
    """Plugins that cannot have the weights they need: the name of one, and what to do."""
    packing: dict[str, frozenset[str]] = {}
    for plugin in plugins:
        with blamed_on(plugin.name, "packs"):
            packing[plugin.name] = frozenset(plugin.packs(config, family))
    for plugin in plugins if any(packing.values()) else ():
        with blamed_on(plugin.name, "needs_weights"):
            needed = dict(plugin.needs_weights(config, family))
        for other, packed in ((name, paths) for name, paths in packing.items() if name != plugin.name):
            met = {path: purpose for path, purpose in needed.items() if path in packed}
            if met:
                purposes = " and ".join(sorted(set(met.values())))
                yield (
                    plugin.name,
                    f"{plugin.name} needs the weights of layers as they are for {purposes}, and {other} packs {len(met)} of them, such "
                    f"as that of {next(iter(met))}: let {other} leave them as they are, or {plugin.name} do without {purposes}",
                )

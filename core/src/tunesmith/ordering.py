"""The one order of plugins, from the model outwards: stage, then relations, then name."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InputError
from .plugin import Plugin


def ordered(plugins: Mapping[str, type[Plugin[Any]]] | Iterable[tuple[str, type[Plugin[Any]]]]) -> list[str]:
    """Names of plugins from the innermost to the outermost.

    A topological sort that always takes the smallest (stage, name) that is free; relations to absent plugins do not
    count. Raises InputError that prints the cycle if the relations contradict each other.
    """
    classes = dict(plugins)
    enclosed: dict[str, set[str]] = {name: set() for name in classes}  # name -> those that must be further inside
    for name, plugin in classes.items():
        for inner in plugin.outside:
            if inner in classes:
                enclosed[name].add(inner)
        for outer in plugin.inside:
            if outer in classes:
                enclosed[outer].add(name)
    free = [(classes[name].stage, name) for name, inner in enclosed.items() if not inner]
    heapq.heapify(free)
    order: list[str] = []
    while free:
        _, name = heapq.heappop(free)
        order.append(name)
        for other, waits_for in enclosed.items():
            if name in waits_for:
                waits_for.discard(name)
                if not waits_for:
                    heapq.heappush(free, (classes[other].stage, other))
    if len(order) < len(classes):
        raise InputError(f"plugins cannot be ordered: {' -> '.join(_cycle(enclosed, order))}")
    return order


def _cycle(enclosed: Mapping[str, set[str]], done: Iterable[str]) -> list[str]:
    """One cycle among the plugins that could not be placed."""
    finished = set(done)
    name = min(set(enclosed) - finished)
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = min(enclosed[name] - finished)
    return [*path[path.index(name) :], name]

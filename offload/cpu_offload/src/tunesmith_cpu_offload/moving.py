"""How networks and the state of an optimizer leave the device, and how they come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, MutableSequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tunesmith import Run

MACHINE = torch.device("cpu")
Place: TypeAlias = tuple[Any, Any]
"""A dict or list, and the key or index of a tensor in it."""


def send(network: nn.Module, run: Run) -> None:
    """Move a network off the device; its parameters stay the same objects."""
    if run.is_rehearsal:
        _exchange(network, run.host_copy)
    else:
        network.to(MACHINE)


def bring(network: nn.Module, run: Run) -> None:
    """Move a network to the device, or what is not there of one whose move was interrupted."""
    if run.is_rehearsal:
        _exchange(network, run.device_copy)
    else:
        network.to(run.device)


def sent(tensor: Tensor, run: Run) -> Tensor:
    """A tensor of the device in the memory of the machine."""
    return run.host_copy(tensor)


def brought(tensor: Tensor, run: Run) -> Tensor:
    """A tensor on the device; itself where it is there already."""
    return run.device_copy(tensor)


@contextmanager
def state_away(states: list[dict[Any, Any]], run: Run) -> Iterator[None]:
    """Within the context the tensors of an optimizer's states that lie on the device lie on the machine.

    A tensor that is in several places is one tensor afterwards, too.
    """
    shared: dict[int, list[Place]] = {}
    for container, key in _places(states):
        tensor = container[key]
        # bitsandbytes' paged state leaves by itself, and a copy of it would be an ordinary tensor
        if tensor.device.type == run.device.type and not getattr(tensor, "is_paged", False):
            shared.setdefault(id(tensor), []).append((container, key))
    try:
        for places in shared.values():
            _put(places, sent, run)
        yield
    finally:
        for places in shared.values():
            _put(places, brought, run)


def _put(places: list[Place], move: Callable[[Tensor, Run], Tensor], run: Run) -> None:
    container, key = places[0]
    moved = move(container[key], run)
    for container, key in places:
        container[key] = moved


def _places(container: Any) -> Iterator[Place]:
    """Where tensors are, in dicts and lists within each other."""
    for key, value in container.items() if isinstance(container, MutableMapping) else enumerate(container):
        if isinstance(value, Tensor):
            yield container, key
        elif isinstance(value, MutableMapping | MutableSequence):
            yield from _places(value)


def _exchange(network: nn.Module, move: Callable[[Tensor], Tensor]) -> None:
    for tensor in chain(network.parameters(), network.buffers()):
        tensor.data = move(tensor.data)

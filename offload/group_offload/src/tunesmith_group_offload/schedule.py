"""When groups come and go: before and after the forward of their modules, and until their gradients are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from .groups import Group


@dataclass(frozen=True)
class Stretch:
    """Modules that run one after the other and whose weights come and go together.

    In backward they stay until the gradients of `within` are computed: a module of the trunk, which is computed again as a whole.
    """

    modules: Sequence[nn.Module]
    within: nn.Module


class Schedule:
    """Lets each group be on the device for the work of its stretch, and with a stream the next one on its way meanwhile.

    With activation checkpointing modules are called again during backward, which brings their weights back. Without it
    backward would look for the weights of forward, and find them gone. Backward goes from module to module of the trunk, each
    as a whole, so what belongs to another one may go when one begins; nothing is added to the graph of gradients for that.
    """

    def __init__(self, stretches: Sequence[Stretch], groups: Sequence[Group], stream: torch.cuda.Stream | None) -> None:
        self.stretches = stretches
        self.groups = groups
        self.stream = stream
        self.here: set[int] = set()
        self.most_here = 0
        """The most groups that were on the device at once."""
        for number, stretch in enumerate(stretches):
            for module in stretch.modules:
                module.register_forward_pre_hook(partial(self._enter, number))
            stretch.modules[-1].register_forward_hook(partial(self._leave, number))

    def rest(self) -> None:
        """Let every group go home, at the end of a step."""
        for number in list(self.here):
            self._unload(number)

    def _enter(self, number: int, *_: Any) -> None:
        backward = in_backward()
        following = number - 1 if backward else number + 1
        if backward:
            within = self.stretches[number].within
            for other in [other for other in self.here if other != number and self.stretches[other].within is not within]:
                self._unload(other)
        self._load(number)
        self.groups[number].wait()
        if self.stream is not None and 0 <= following < len(self.groups):
            self._load(following)
        self.most_here = max(self.most_here, len(self.here))

    def _leave(self, number: int, *_: Any) -> None:
        """After forward; the last group stays where backward begins with it."""
        stays = torch.is_grad_enabled() and number == len(self.groups) - 1
        if not (in_backward() or stays):
            self._unload(number)

    def _load(self, number: int) -> None:
        self.groups[number].load(self.stream)
        self.here.add(number)

    def _unload(self, number: int) -> None:
        self.groups[number].unload()
        self.here.discard(number)


def in_backward() -> bool:
    """Whether gradients are being computed: what runs now runs again."""
    return bool(torch._C._current_graph_task_id() != -1)

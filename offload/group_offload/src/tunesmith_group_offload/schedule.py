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
    backward would look for the weights of forward, and find them gone.
    """

    def __init__(self, stretches: Sequence[Stretch], groups: Sequence[Group], stream: torch.cuda.Stream | None) -> None:
        self.groups = groups
        self.stream = stream
        self.most_here = 0
        """The most groups that were on the device at once."""
        for number, stretch in enumerate(stretches):
            for module in stretch.modules:
                module.register_forward_pre_hook(partial(self._enter, number))
            stretch.modules[-1].register_forward_hook(partial(self._leave, number))
        _, *later = dict.fromkeys(stretch.within for stretch in stretches)
        for within in later:  # the first one's input may need no gradient, and then nothing tells when it is done: it waits for `rest`
            numbers = [number for number, stretch in enumerate(stretches) if stretch.within is within]
            within.register_full_backward_hook(partial(self._done, numbers))

    def rest(self) -> None:
        """Let every group go home, at the end of a step."""
        for group in self.groups:
            group.unload()

    def _enter(self, number: int, *_: Any) -> None:
        group = self.groups[number]
        group.load(self.stream)
        group.wait()
        following = number - 1 if in_backward() else number + 1
        if self.stream is not None and 0 <= following < len(self.groups):
            self.groups[following].load(self.stream)
        self.most_here = max(self.most_here, sum(group.is_here for group in self.groups))

    def _leave(self, number: int, *_: Any) -> None:
        """After forward; the last group stays where backward begins with it."""
        stays = torch.is_grad_enabled() and number == len(self.groups) - 1
        if not (in_backward() or stays):
            self.groups[number].unload()

    def _done(self, numbers: Sequence[int], *_: Any) -> None:
        for number in numbers:
            self.groups[number].unload()


def in_backward() -> bool:
    """Whether gradients are being computed: what runs now runs again."""
    return bool(torch._C._current_graph_task_id() != -1)

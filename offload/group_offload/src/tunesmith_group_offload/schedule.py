"""When groups come and go: before and after the forward of their modules, and until their gradients are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd import Variable

from .groups import Group

NO_BACKWARD = -1
"""The number of the task of gradients where there is none."""


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
    as a whole, so what belongs to another one may go when one begins; nothing is added to the graph of gradients for that. When
    backward has ended, or a forward of the whole denoiser without gradients, all are at home.
    """

    def __init__(
        self, denoiser: nn.Module, stretches: Sequence[Stretch], groups: Sequence[Group], stream: torch.cuda.Stream | None
    ) -> None:
        self.stretches = stretches
        self.groups = groups
        self.stream = stream
        self.here: set[int] = set()
        self.most_here = 0
        """The most groups that were on the device at once."""
        self._trains = any(group.trains for group in groups)
        self._task = NO_BACKWARD
        for number, stretch in enumerate(stretches):
            for module in stretch.modules:
                module.register_forward_pre_hook(partial(self._enter, number))
            stretch.modules[-1].register_forward_hook(partial(self._leave, number))
        denoiser.register_forward_hook(self._end, always_call=True)

    def rest(self) -> None:
        """Let every group go home; what is trained may be changed there from then on."""
        for number in list(self.here):
            self._unload(number)
        if self._trains and self.groups[0].device.type != "cpu":
            torch.accelerator.synchronize(self.groups[0].device)  # it may still be reading at home what it was asked to copy

    def _enter(self, number: int, *_: Any) -> None:
        task = torch._C._current_graph_task_id()
        backward = task != NO_BACKWARD
        following = number - 1 if backward else number + 1
        if backward:
            if task != self._task:
                self._task = task
                Variable._execution_engine.queue_callback(self.rest)
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
        if torch._C._current_graph_task_id() != NO_BACKWARD:
            return
        if self.groups[number].trains:
            torch.clear_autocast_cache()  # it keeps what is trained in half precision, on the device, until the whole model is computed
        if not (torch.is_grad_enabled() and number == len(self.groups) - 1):
            self._unload(number)

    def _end(self, *_: Any) -> None:
        """After forward of the denoiser, even one that failed: a preview that does is told, and training goes on."""
        if not torch.is_grad_enabled():
            self.rest()

    def _load(self, number: int) -> None:
        self.groups[number].load(self.stream)
        self.here.add(number)

    def _unload(self, number: int) -> None:
        self.groups[number].unload()
        self.here.discard(number)

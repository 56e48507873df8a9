"""A pretended device: what visits it is a copy that is nothing but NaN once it has left, and so is what is at home meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor, nn

from tunesmith_group_offload.groups import Group
from tunesmith_group_offload.schedule import Schedule, Stretch


class Device:
    """Keeps the values of all groups from when the first visits it until all have rested, and counts the visits.

    In between homes hold NaN, so that a computation which reads there instead of from a copy shows, and whoever writes there
    is told.
    """

    def __init__(self) -> None:
        self.schedules: list[Schedule] = []
        self.loads = 0
        self.values: dict[int, Tensor] = {}
        """By the address of a home."""

    @property
    def schedule(self) -> Schedule:
        """That of the model that is trained."""
        return self.schedules[-1]

    def depart(self) -> None:
        """Put NaN where the values are at home."""
        for home in [tensor.data for group in self.schedule.groups for tensor in group.tensors]:
            self.values[home.data_ptr()] = home.clone()
            spoil(home)

    def go_home(self) -> None:
        """Put the values back; AssertionError if somebody wrote there in between."""
        for home in [tensor.data for group in self.schedule.groups for tensor in group.tensors] if self.values else ():
            assert is_spoilt(home), "a home was written to while its group was away"
            home.copy_(self.values.pop(home.data_ptr()))
        assert not self.values, "a group rested without its home"


def spoil(tensor: Tensor) -> None:
    """Leave nothing of a tensor: NaN, or where there is none the least number."""
    tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)


def is_spoilt(tensor: Tensor) -> bool:
    """Whether it is as `spoil` left it."""
    return bool((tensor.isnan() if tensor.is_floating_point() else tensor == torch.iinfo(tensor.dtype).min).all())


def pretend(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Let groups visit such a device."""
    device = Device()
    begin, load, unload, rest = Schedule.__init__, Group.load, Group.unload, Schedule.rest

    def start(schedule: Schedule, denoiser: nn.Module, stretches: Sequence[Stretch], groups: Sequence[Group], stream: Any) -> None:
        begin(schedule, denoiser, stretches, groups, stream)
        device.schedules.append(schedule)

    def arrive(group: Group, stream: Any = None) -> None:
        if not device.values:
            device.depart()
        device.loads += not group.is_here
        load(group, stream)

    def leave(group: Group) -> None:
        copies = [tensor.data for tensor in group.tensors] if group.is_here else []
        unload(group)
        for copy in copies:
            spoil(copy)  # also for whoever still holds it

    def settle(schedule: Schedule) -> None:
        rest(schedule)
        device.go_home()

    monkeypatch.setattr(Schedule, "__init__", start)
    monkeypatch.setattr(Schedule, "rest", settle)
    monkeypatch.setattr(Group, "load", arrive)
    monkeypatch.setattr(Group, "unload", leave)
    monkeypatch.setattr(Group, "visiting", lambda group, home: device.values[home.data_ptr()].clone())
    return device


def pretend_for_encoders(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let diffusers' groups be nothing but NaN while they are away; gives, for each visit of a group, how many values came."""
    away: dict[int, tuple[Tensor, Tensor]] = {}
    visits: list[int] = []

    def tensors(group: ModuleGroup) -> list[Tensor]:
        inner = [tensor for module in group.modules for tensor in (*module.parameters(), *module.buffers())]
        return list({id(tensor): tensor for tensor in (*inner, *group.parameters, *group.buffers)}.values())

    def arrive(group: ModuleGroup) -> None:
        coming = [tensor for tensor in tensors(group) if id(tensor) in away]
        visits.append(sum(tensor.numel() for tensor in coming))
        for tensor in coming:
            _, value = away.pop(id(tensor))
            tensor.data.copy_(value)

    def leave(group: ModuleGroup) -> None:
        for tensor in tensors(group):
            if id(tensor) not in away and tensor.is_floating_point():
                away[id(tensor)] = tensor, tensor.data.clone()
                tensor.data.fill_(torch.nan)

    monkeypatch.setattr(ModuleGroup, "onload_", arrive)
    monkeypatch.setattr(ModuleGroup, "offload_", leave)
    return visits

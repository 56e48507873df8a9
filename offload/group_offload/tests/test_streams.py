"""A stream beside the work, without a GPU: what is queued where, and what each stream waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith import Run
from tunesmith_group_offload.groups import Group
from tunesmith_group_offload.schedule import Schedule, Stretch

NUM_BLOCKS = 5


def run_on(device: str) -> Run:
    """As much of a run as a group asks for."""
    return cast(Run, SimpleNamespace(device=torch.device(device), host_copy=lambda tensor: tensor))


@dataclass
class Queue:
    """A pretended stream: what was queued, each with what was done for certain before it, on any stream."""

    before: set[str] = field(default_factory=set)
    queued: dict[str, set[str]] = field(default_factory=dict)

    def add(self, what: str) -> None:
        self.queued[what] = set(self.before)
        self.before.add(what)

    def wait_stream(self, other: Queue) -> None:
        self.before |= other.before

    def record_event(self) -> set[str]:
        return set(self.before)

    def wait_event(self, event: set[str]) -> None:
        self.before |= event


@dataclass
class Device:
    """The stream of the work, the one beside it, and the one that is current."""

    work: Queue = field(default_factory=Queue)
    beside: Queue = field(default_factory=Queue)

    def __post_init__(self) -> None:
        self.current = self.work

    @contextmanager
    def stream(self, queue: Queue) -> Iterator[None]:
        before, self.current = self.current, queue
        try:
            yield
        finally:
            self.current = before


class Block(nn.Module):
    """A linear layer that queues its work; `calls` counts forward and what is computed again."""

    def __init__(self, number: int, device: Device) -> None:
        super().__init__()
        self.number, self.device, self.calls = number, device, 0
        self.linear = nn.Linear(4, 4, bias=False).requires_grad_(False)

    def forward(self, states: Tensor) -> Tensor:
        self.calls += 1
        self.device.work.add(f"work {self.number}.{self.calls}")
        out: Tensor = self.linear(states)
        return out


class Stack(nn.Module):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(number, device) for number in range(NUM_BLOCKS))

    def forward(self, states: Tensor) -> Tensor:
        for block in self.blocks:
            states = checkpoint(block, states, use_reentrant=False)
        return states


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """torch.cuda as far as groups use it; what is copied to a device without waiting is queued on the current stream."""
    device = Device()
    copy = Tensor.copy_
    homes: dict[int, list[Tensor]] = {}

    def copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if non_blocking:
            visits = homes.setdefault(source.data_ptr(), [])
            visits.append(target)
            device.current.add(f"copy {list(homes).index(source.data_ptr())}.{len(visits)}")
        return copy(target, source)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: device.current)
    monkeypatch.setattr(torch.cuda, "stream", device.stream)
    monkeypatch.setattr(Tensor, "copy_", copied)
    return device


def test_work_waits_for_its_weights_and_a_copy_for_the_work_before_the_one_that_it_runs_beside(device: Device) -> None:
    """So two groups at most have memory, however far the processor is ahead of the device."""
    torch.manual_seed(0)
    model = Stack(device)
    groups = [Group(block.parameters(), run_on("cpu")) for block in model.blocks]
    schedule = Schedule(model, [Stretch([block], block) for block in model.blocks], groups, device.beside)  # type: ignore[arg-type]
    model(torch.ones(1, 4, requires_grad=True)).sum().backward()
    assert schedule.most_here == 2
    assert not schedule.here

    forward = [(number, 1) for number in range(NUM_BLOCKS)]
    again = [(number, 2) for number in reversed(range(NUM_BLOCKS))]
    order = [f"work {number}.{call}" for number, call in forward + again]
    assert list(device.work.queued) == order
    copies = [f"copy {number}.1" for number in range(NUM_BLOCKS)] + [f"copy {number}.2" for number in reversed(range(NUM_BLOCKS - 1))]
    assert list(device.beside.queued) == copies  # the last group stays for backward
    for number, call in forward + again[1:]:
        assert f"copy {number}.{call}" in device.work.queued[f"work {number}.{call}"]
    for copy in copies[2:]:
        number, call = map(int, copy.removeprefix("copy ").split("."))
        beside = f"work {number - 1}.1" if call == 1 else f"work {number + 1}.2"
        assert device.beside.queued[copy] >= set(order[: order.index(beside)])
        assert beside not in device.beside.queued[copy]


def test_memory_of_a_copy_that_was_not_used_is_free_only_when_it_has_arrived(device: Device) -> None:
    home = torch.ones(2)
    group = Group([home], run_on("cpu"))
    group.load(device.beside)  # type: ignore[arg-type]
    group.unload()
    device.work.add("next")
    assert "copy 0.1" in device.work.queued["next"]


@pytest.mark.parametrize("trains", [True, False])
def test_what_is_trained_may_change_at_home_when_nothing_reads_there_any_more(monkeypatch: pytest.MonkeyPatch, trains: bool) -> None:
    """The processor updates it there after backward, and is ahead of the device."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    group = Group([nn.Parameter(torch.ones(2), requires_grad=trains)], run_on("cuda"), trains)
    Schedule(nn.Identity(), [], [group], None).rest()
    assert waited == [torch.device("cuda")] * trains


def test_homes_in_pinned_memory_hold_what_the_weights_held(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    weights = [torch.arange(3.0), torch.arange(4, dtype=torch.int8)]
    Group(weights, run_on("cuda")).pin()
    assert [weight.data_ptr() for weight in weights] == [home.data_ptr() for home in pinned]
    assert [weight.tolist() for weight in weights] == [[0, 1, 2], [0, 1, 2, 3]]

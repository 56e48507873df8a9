"""What stands in for a GPU in runs that would otherwise move nothing, and for a compiler, which takes long."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from offload.cpu_offload.tests.pretended import pretend_machine
from offload.group_offload.tests.pretended import Device as Groups
from offload.group_offload.tests.pretended import pretend, pretend_for_encoders
from tunesmith import Run, compiling
from tunesmith.activations import pinned_copy, saved_tensors


@dataclass
class Pretended:
    """What was seen of these: groups and networks that came and went, copies of activations, and graphs."""

    groups: Groups | None = None
    encoders: list[int] = field(default_factory=list)
    """How many values came with each visit of a group of an encoder."""
    networks: list[str] = field(default_factory=list)
    copies: list[Tensor] = field(default_factory=list)
    graphs: list[Any] = field(default_factory=list)


@contextmanager
def pretending(settings: Sequence[str]) -> Iterator[Pretended]:
    """Within the context what left the device is nothing but NaN, as far as these settings are about that."""
    seen, text = Pretended(), " ".join(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)  # nothing of this outlives the machine, and it takes a fifth of the time
        if "group_offload" in text:
            seen.groups = pretend(patch)
            seen.encoders = pretend_for_encoders(patch)
        if "cpu_offload" in text:
            seen.networks = pretend_machine(patch).log
        if "activations" in text:
            patch.setattr("tunesmith.trainer.saved_tensors", lambda run: saved_tensors(sending(run, seen.copies)))
        if "compile" not in text:
            yield seen
            return
        patch.setattr(compiling, "lower", lowering(seen.graphs))
        patch.setattr("tunesmith.session.require_compiler", lambda device: None)
        patch.setattr(logging.getLogger("torch.__trace"), "level", logging.CRITICAL)
        torch._dynamo.reset()
        yield seen
        torch._dynamo.reset()


def sending(run: Run, copies: list[Tensor]) -> Any:
    """As much of a run as moves activations: they leave a device that is not the CPU, and come back as they do from there."""

    def send(tensor: Tensor) -> Tensor:
        copies.append(pinned_copy(tensor))
        return copies[-1]

    return SimpleNamespace(config=run.config, is_rehearsal=True, host_copy=send, device_copy=Tensor.clone)


def lowering(graphs: list[Any]) -> Any:
    """What calls operation after operation, which is dynamo's part of compiling and not inductor's."""

    def lower(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("eager")(graph, list(examples))

    return lower

"""A device that forgets: what has left it holds nothing until it is brought back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn

from tunesmith import Run
from tunesmith_cpu_offload import moving, turns

ROLES = {"Autoencoder": "vae", "Transformer": "denoiser", "Wav2Vec2": "audio", "Gemma2": "text", "UMT5": "text"}


def role(network: nn.Module) -> str:
    """What a network is for."""
    return next(role for part, role in ROLES.items() if part in type(network).__name__)


def void(tensor: Tensor) -> Tensor:
    """What is found of a tensor that is away."""
    return torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 0)


def is_void(tensor: Tensor) -> bool:
    return torch.equal(tensor.isnan() if tensor.is_floating_point() else tensor == 0, torch.ones_like(tensor, dtype=torch.bool))


@dataclass(frozen=True)
class Ghost:
    """What stands in a state for a tensor that is away, and that tensor."""

    void: Tensor
    home: Tensor


class Device:
    """What left and what came, as `-vae` and `+vae`; at most one of those that take turns is there."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.here: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._homes: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()
        self._ghosts: dict[int, Ghost] = {}

    def send(self, network: nn.Module, run: Run) -> None:
        """Let a network leave."""
        assert network not in self._homes
        self._homes[network] = [tensor.data.clone() for tensor in tensors(network)]
        for tensor in tensors(network):
            tensor.data.copy_(void(tensor.data))
        self.here.pop(network, None)
        self.log.append(f"-{role(network)}")

    def bring(self, network: nn.Module, run: Run) -> None:
        """Let it come, with all that it had, or that was written to it meanwhile."""
        assert not self.here
        for tensor, home in zip(tensors(network), self._homes.pop(network), strict=True):
            if is_void(tensor.data):
                tensor.data.copy_(home)
        self.here[network] = role(network)
        self.log.append(f"+{role(network)}")

    def sent(self, tensor: Tensor, run: Run) -> Tensor:
        """Let a tensor of a state leave."""
        ghost = Ghost(void(tensor), tensor)
        self._ghosts[id(ghost.void)] = ghost
        self.note("-state")
        return ghost.void

    def brought(self, tensor: Tensor, run: Run) -> Tensor:
        """Let it come, when samples are made and the denoiser takes no more turns."""
        assert [*self.here.values()] in ([], ["denoiser"])
        self.here.clear()
        self.note("+state")
        return self._ghosts.pop(id(tensor)).home

    def note(self, what: str) -> None:
        """Log something, once for as long as nothing else happens."""
        if self.log[-1:] != [what]:
            self.log.append(what)


def pretend_machine(patch: pytest.MonkeyPatch) -> Device:
    """Networks and an optimizer's state leave and reach this device in place of the real one."""
    device = Device()
    patch.setattr(turns, "send", device.send)
    patch.setattr(turns, "bring", device.bring)
    patch.setattr(moving, "sent", device.sent)
    patch.setattr(moving, "brought", device.brought)
    return device


def tensors(network: nn.Module) -> list[Tensor]:
    return [*chain(network.parameters(), network.buffers())]

"""Groups of frozen weights: where they are at home, and how they visit the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Group:
    """The frozen weights and buffers of some modules: at home on the machine, with a copy on the device while they visit it.

    They never change, so nothing is brought back. What is trained is no part of it and stays on the device.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)
        self.tensors = [tensor for tensor in tensors if not tensor.requires_grad]
        self.homes = [tensor.data for tensor in self.tensors]
        self.is_here = False
        self.arrived: torch.cuda.Event | None = None

    @property
    def bytes(self) -> int:
        """What the group takes."""
        return sum(home.numel() * home.element_size() for home in self.homes)

    def pin(self) -> None:
        """Move the homes into memory from which a GPU copies without waiting."""
        self._settle([home.pin_memory() for home in self.homes])

    def keep_on_disk(self, file: Path) -> None:
        """Move the homes into a file that is mapped into memory and read whenever the group is needed."""
        save_file({str(number): home.contiguous() for number, home in enumerate(self.homes)}, file)
        mapped = load_file(file)
        self._settle([mapped[str(number)] for number in range(len(self.homes))])

    def load(self, stream: torch.cuda.Stream | None = None) -> None:
        """Bring the weights to the device, on a stream beside the work if there is one."""
        if self.is_here:
            return
        with torch.cuda.stream(stream):
            for tensor, home in zip(self.tensors, self.homes, strict=True):
                tensor.data = home.to(self.device, non_blocking=True)
        if stream is not None:
            self.arrived = stream.record_event()
        self.is_here = True

    def wait(self) -> None:
        """Let the work from here on begin when the weights have arrived, and keep their memory until it is done."""
        if self.arrived is None:
            return
        now = torch.cuda.current_stream(self.device)
        now.wait_event(self.arrived)
        for tensor in self.tensors:
            tensor.data.record_stream(now)
        self.arrived = None

    def unload(self) -> None:
        """Let go of the copies on the device."""
        if self.is_here:
            self._settle(self.homes)
            self.is_here = False

    def _settle(self, homes: list[Tensor]) -> None:
        self.homes = homes
        for tensor, home in zip(self.tensors, homes, strict=True):
            tensor.data = home

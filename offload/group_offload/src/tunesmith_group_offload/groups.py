"""Groups of weights: where they are at home, and how they visit the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith import Run


class Group:
    """Weights and buffers of some modules: at home on the machine, with copies on the device while they visit it.

    Copies are let go, and nothing is brought back but gradients: weights are changed at home alone. With `trains` what is
    trained belongs to the group too; each of its gradients goes home as soon as it is computed, and is added to those of earlier
    backward passes. Without, it is no part of the group and stays on the device.
    """

    def __init__(self, tensors: Iterable[Tensor], run: Run, trains: bool = False) -> None:
        self.run, self.device = run, run.device
        self.tensors = [tensor for tensor in dict.fromkeys(tensors) if trains or not tensor.requires_grad]
        self.homes: list[Tensor] = []
        """Where the weights are at home, while they visit the device."""
        self.gradients: dict[int, Tensor | None] = {}
        """The gradients of trained weights, by number, while those visit the device."""
        for number, tensor in enumerate(self.tensors):
            tensor.data = run.host_copy(tensor.data)
            if tensor.requires_grad:
                self.gradients[number] = None
                tensor.register_post_accumulate_grad_hook(partial(self._bring_home, number))  # type: ignore[no-untyped-call]
        self.is_here = False
        self.arrived: torch.cuda.Event | None = None

    @property
    def bytes(self) -> int:
        """What the group takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    @property
    def trains(self) -> bool:
        """Whether any of the group is trained."""
        return bool(self.gradients)

    def pin(self) -> None:
        """Move the homes into memory from which a GPU copies without waiting."""
        self._settle([tensor.data.pin_memory() for tensor in self.tensors])

    def keep_on_disk(self, file: Path) -> None:
        """Move the homes into a file that is mapped into memory and read whenever the group is needed; it is never written again."""
        save_file({str(number): tensor.data.contiguous() for number, tensor in enumerate(self.tensors)}, file)
        mapped = load_file(file)
        self._settle([mapped[str(number)] for number in range(len(self.tensors))])

    def load(self, stream: torch.cuda.Stream | None = None) -> None:
        """Bring the weights to the device, on a stream beside the work if there is one."""
        if self.is_here:
            return
        self.homes = [tensor.data for tensor in self.tensors]
        for number in self.gradients:
            self.gradients[number], self.tensors[number].grad = self.tensors[number].grad, None
        self._settle([self.visiting(home) for home in self.homes] if stream is None else self._arriving(stream))
        self.is_here = True

    def visiting(self, home: Tensor) -> Tensor:
        """What is on the device of a weight."""
        return self.run.device_copy(home)

    def wait(self) -> None:
        """Let the work from here on begin when the weights have arrived."""
        if self.arrived is None:
            return
        torch.cuda.current_stream(self.device).wait_event(self.arrived)
        self.arrived = None

    def unload(self) -> None:
        """Let go of the copies on the device; what is trained has its gradients again."""
        if not self.is_here:
            return
        if self.arrived is not None:
            self.wait()  # they were not used, but what takes their memory next must come behind their arrival
        self._settle(self.homes)
        self.homes = []
        for number, gradient in self.gradients.items():
            self.tensors[number].grad, self.gradients[number] = gradient, None
        self.is_here = False

    def _arriving(self, stream: torch.cuda.Stream) -> list[Tensor]:
        """Copies that arrive on a stream beside the work, once all is done that is queued by now.

        Their memory belongs to the work, whose next tensors may take it as soon as they are let go. Memory of the other stream would
        be free only when the device is through with the block, and the processor, which is blocks ahead, would take more for each.
        """
        now = torch.cuda.current_stream(self.device)
        copies = [torch.empty_like(home, device=self.device) for home in self.homes]
        stream.wait_stream(now)
        with torch.cuda.stream(stream):
            for copy, home in zip(copies, self.homes, strict=True):
                copy.copy_(home, non_blocking=True)
        self.arrived = stream.record_event()
        return copies

    def _bring_home(self, number: int, parameter: Tensor) -> None:
        """Add a gradient that was just computed to what is at home."""
        assert parameter.grad is not None
        gradient, before = self.run.host_copy(parameter.grad), self.gradients[number]
        self.gradients[number] = gradient if before is None else before.add_(gradient)
        parameter.grad = None

    def _settle(self, places: Sequence[Tensor]) -> None:
        for tensor, place in zip(self.tensors, places, strict=True):
            tensor.data = place


def shared_weights(network: nn.Module, portions: Sequence[Sequence[nn.Module]]) -> set[Tensor]:
    """What modules of several portions of a network hold, or of a portion and of the rest: it cannot come and go with one of them."""
    within = {module for portion in portions for top in portion for module in top.modules()}
    holders: dict[Tensor, set[int]] = {}
    for number, portion in enumerate(portions):
        for tensor in weights_of(portion):
            holders.setdefault(tensor, set()).add(number)
    for module in network.modules():
        for tensor in chain(module.parameters(recurse=False), module.buffers(recurse=False)) if module not in within else ():
            holders.setdefault(tensor, set()).add(len(portions))
    return {tensor for tensor, numbers in holders.items() if len(numbers) > 1}


def weights_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """The parameters and buffers of modules."""
    return chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)

"""Networks that take turns on a device: whoever is called comes, and who was there before leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ref

import torch
from accelerate.hooks import ModelHook
from torch import nn
from torch.utils.hooks import RemovableHandle

from tunesmith import Run, RunFailed

from .moving import bring, send


class Turns(ModelHook):  # type: ignore[misc]
    """Brings each network to the device before it computes, and lets the one that is there leave before that.

    Nobody leaves after its work, so that a network that is called many times comes once. To accelerate and diffusers this is
    the hook of the networks: they ask it where these compute (`execution_device`), and call `pre_forward` before `encode` and
    `decode` of an autoencoder, which are no `forward`. Networks are known by weak references: they are freed when whoever
    loaded them lets go of them.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.execution_device = run.device
        self._who: Callable[[], nn.Module | None] = _nobody
        self._is_whole = False

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Let a network come, which is about to compute."""
        self.come(module)
        return args, kwargs

    def join(self, network: nn.Module) -> None:
        """Let a network lie on the machine and take its turns from now on."""
        send(network, self.run)
        self._listen(network)

    @contextmanager
    def joined(self, network: nn.Module) -> Iterator[None]:
        """Within the context a network that is on the device takes turns with the others; at its end it is there and no other is.

        RunFailed if its weights are other objects then, of which an optimizer would know nothing.
        """
        self.rest()
        self._who, self._is_whole = ref(network), True
        weights = [*network.parameters()]
        handles = self._listen(network)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            del network._hf_hook
            self.come(network)
            self._who = _nobody
        if any(now is not before for now, before in zip(network.parameters(), weights, strict=True)):
            raise RunFailed(
                f"a model that is moved to {self.execution_device} and back has other weights than those that are trained; "
                "set denoiser = false in [plugins.cpu_offload]"
            )

    def come(self, network: nn.Module) -> None:
        """Bring a network to the device, unless it is there, once no other is."""
        if self._who() is not network:
            self.rest()
        if not self._is_whole:
            self._who = ref(network)
            bring(network, self.run)
            self._is_whole = True

    def rest(self) -> None:
        """Let the network that is on the device leave."""
        network, self._is_whole = self._who(), False
        if network is not None:
            torch.clear_autocast_cache()  # which holds its weights in another precision
            send(network, self.run)
        self._who = _nobody

    def _listen(self, network: nn.Module) -> list[RemovableHandle]:
        """Be told before a network computes: also by methods of its own, which call the modules in it."""
        network._hf_hook = self
        called = partial(self._called, ref(network))
        return [module.register_forward_pre_hook(called) for module in (network, *network.children())]

    def _called(self, network: Callable[[], nn.Module | None], *_: Any) -> None:
        if (found := network()) is not None:
            self.come(found)


def _nobody() -> None:
    """The network that is on the device, where none is."""

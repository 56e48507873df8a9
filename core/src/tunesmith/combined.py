"""Optimizers made of several: of two kinds, or of one for each weight that steps within backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class CombinedOptimizer(Optimizer):
    """Several optimizers as one, each for parameters of its own.

    `param_groups` are those of the `parts`, the same dicts, so that a learning rate that is set here is theirs. What is
    kept of each parameter stays with its part.
    """

    def __init__(self, parts: Iterable[Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        """Let each part make its step; none of them takes a closure."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What each part says of itself."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each part what it said of itself."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class FusedBackward(CombinedOptimizer):
    """One optimizer for each parameter, which steps within backward as soon as the gradient is whole; the gradient is freed then.

    `make` makes an optimizer of groups. Learning rates must be set before backward. Elements of gradients are clipped to
    `clip_value`, if there is one.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        make: Callable[[list[dict[str, Any]]], Optimizer],
        clip_value: float | None,
    ) -> None:
        groups = [one if isinstance(one, dict) else {"params": [one]} for one in params]
        parts = {parameter: make([{**group, "params": [parameter]}]) for group in groups for parameter in group["params"]}
        super().__init__(parts.values())
        self._clip_value = clip_value
        self._norms: dict[Tensor, Tensor] = {}
        for parameter, part in parts.items():
            parameter.register_post_accumulate_grad_hook(partial(self._update, part))

    def step(self, closure: Any = None) -> Any:
        """Nothing is left to do: all steps were made within backward."""

    def take_norm(self) -> Tensor:
        """The norm that the gradients of the last backward had before clipping, together."""
        norms = [self._norms[parameter] for group in self.param_groups for parameter in group["params"] if parameter in self._norms]
        self._norms.clear()
        return nn.utils.get_total_norm(norms)

    def _update(self, part: Optimizer, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._norms[parameter] = torch.linalg.vector_norm(parameter.grad)
        if self._clip_value is not None:
            nn.utils.clip_grad_value_([parameter], self._clip_value)
        part.step()
        parameter.grad = None


def parts_of(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """The optimizers that one is made of in the end, or itself."""
    if not isinstance(optimizer, CombinedOptimizer):
        return (optimizer,)
    return tuple(chain.from_iterable(map(parts_of, optimizer.parts)))


def tensors_kept(state_dict: Mapping[str, Any], name: str = "optimizer") -> Iterator[tuple[str, Tensor]]:
    """What an optimizer's `state_dict` has of each parameter, those of its parts too, by names such as `optimizer:0:exp_avg`."""
    for number, part in enumerate(state_dict.get("parts", ())):
        yield from tensors_kept(part, f"{name}:{number}")
    for number, slots in state_dict.get("state", {}).items():
        yield from ((f"{name}:{number}:{slot}", torch.as_tensor(value)) for slot, value in slots.items() if value is not None)

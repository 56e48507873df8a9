"""The memory that a run will take, told beforehand by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .config import Config
from .engine import make_optimizer
from .errors import InputError
from .family import Family

FLOAT_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes that the trained model takes, by arithmetic from its shapes; activations are not counted."""

    parameters: int
    weights: int
    gradients: int
    optimizer: int | None


def memory(family: Family, config: Config, trains_base: bool) -> Memory:
    """What the model takes; of an adapter's run the base alone, which has no gradients."""
    parameters = sum(parameter.numel() for parameter in family.on_meta().parameters())
    weights = parameters * FLOAT_BYTES[config.run.weights]
    if not trains_base:
        return Memory(parameters, weights, gradients=0, optimizer=0)
    each = _state_bytes(config)
    return Memory(parameters, weights, gradients=weights, optimizer=None if each is None else round(parameters * each))


def _state_bytes(config: Config) -> float | None:
    """Bytes that the optimizer keeps for each weight, found by letting it make one step; None if it cannot here."""
    weight = torch.nn.Parameter(torch.zeros(128, 128, dtype=torch.float32 if config.run.weights == "fp32" else torch.bfloat16))
    weight.grad = torch.zeros_like(weight)
    try:
        optimizer = make_optimizer([weight], config.optimizer)
        optimizer.step()
    except (InputError, RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
        return None  # it steps only on the device or the shapes that it is made for
    kept = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in kept) / weight.numel()

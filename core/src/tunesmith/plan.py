"""What a run would do, told before any weight is loaded: data, steps, cache, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text

from .config import Config
from .contract import CORE
from .data.dataset import Dataset
from .data.order import Order
from .engine import choose_device, make_optimizer, require_precision
from .errors import InputError
from .family import Family
from .noise import SigmaSampler
from .plugin import Stage
from .session import assemble, look_at_data, total_steps
from .validation import sizes

GIB = 2**30
FLOAT_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes that the trained model takes, by arithmetic from its shapes; activations are not counted."""

    parameters: int
    weights: int
    gradients: int
    optimizer: int | None


@dataclass(frozen=True)
class Plan:
    """The answers of `tune plan`."""

    run: str
    family: str
    plugins: list[str]
    datasets: list[dict[str, Any]]
    batches_per_epoch: int
    steps: int
    epochs: float
    sigma_shift: dict[str, float]
    cache_bytes: int | None
    validation_samples: int
    memory: Memory
    trains_base: bool
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return asdict(self)

    def render(self) -> RenderableType:
        """The plan for a terminal."""
        parts: list[RenderableType] = [Text(f"{self.run}: {self.family}, with {', '.join(self.plugins) or 'no plugins'}", style="bold")]
        for dataset in self.datasets:
            parts += [Text(line) for line in dataset["funnel"]]
            parts.append(Text("  buckets: " + ", ".join(f"{size} with {count}" for size, count in dataset["buckets"].items())))
        cache = "encoded on the fly" if self.cache_bytes is None else f"{_size(self.cache_bytes)} of latents"
        trained = "the whole model is trained" if self.trains_base else "the base is frozen and adapters are trained"
        shifts = ", ".join(f"{size}: {shift:.3g}" for size, shift in self.sigma_shift.items())
        parts += [
            Text(f"{self.steps} steps; {self.batches_per_epoch} batches an epoch, {self.epochs:.2f} epochs; {trained}"),
            Text(f"sigma shift by size: {shifts}"),
            Text(f"cache: {cache}; validation: {self.validation_samples} samples each time"),
            Text(
                f"memory of the model, {self.memory.parameters / 1e6:.1f} M parameters: weights {_size(self.memory.weights)}, "
                f"gradients {_size(self.memory.gradients)}, optimizer {_size(self.memory.optimizer)} (activations and adapters not counted)"
            ),
        ]
        return Group(*parts, *(Text(f"note: {note}") for note in self.notes))


def make_plan(config: Config) -> Plan:
    """Look at the data and the model's configuration; InputError where the run could not start."""
    cast = assemble(config)
    family = cast.family
    datasets = look_at_data(config, family)
    order = Order(datasets, config.run.seed, cached=bool(config.run.cache))
    steps = total_steps(config, order)
    adapts = any(plugin.stage is Stage.ADAPT for plugin in cast.hooks.plugins)
    buckets = sorted({bucket for dataset in datasets for bucket in dataset.buckets})
    sigmas = SigmaSampler(config.noise, family.noise_shift)
    return Plan(
        run=config.run_name,
        family=family.name,
        plugins=[plugin.name for plugin in cast.hooks.plugins if plugin.name not in (CORE, config.family)],
        datasets=[_describe(dataset) for dataset in datasets],
        batches_per_epoch=order.batches_per_epoch,
        steps=steps,
        epochs=steps * config.run.gradient_accumulation / order.batches_per_epoch,
        sigma_shift={
            f"{width}x{height}": sigmas.shift(family.token_grid(frames, height, width).tokens) for width, height, frames in buckets
        },
        cache_bytes=_cache_bytes(family, order) if config.run.cache else None,
        validation_samples=len(config.prompts) * len(sizes(config, family)) * len(config.validation.seeds),
        memory=_memory(family, config, trains_base=not adapts),
        trains_base=not adapts,
        notes=list(_notes(config, steps)),
    )


def _notes(config: Config, steps: int) -> Iterator[str]:
    """What is allowed and probably not meant, and what this very machine would refuse."""
    if config.optimizer.warmup >= steps:
        yield f"[optimizer] warmup = {config.optimizer.warmup} is not over after the {steps} steps of the run"
    try:
        require_precision(config.run, choose_device(config.run.device))
    except InputError as error:
        yield f"on this machine the run would be refused: {error}"


def _describe(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "path": str(dataset.table.path),
        "funnel": dataset.funnel.lines(),
        "buckets": {f"{width}x{height}": len(samples) for (width, height, _), samples in sorted(dataset.buckets.items())},
    }


def _cache_bytes(family: Family, order: Order) -> int:
    """Bytes of fp32 latents; prompts are small beside them and not counted."""
    return sum(4 * math.prod(family.latent_shape(1, source.crop.size[1], source.crop.size[0])) for source in order.all_sources())


def _memory(family: Family, config: Config, trains_base: bool) -> Memory:
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


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"

"""The settings that save memory: the core's own, and those of the plugins that are installed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from .config import Config
from .config.datasets import SampleTable
from .discovery import installed, load_class
from .errors import InputError
from .family import FamilyPlugin
from .plugin import Lever

ROUNDED_AWAY = 3.0
"""The price of trained weights in few bits, which lose small updates."""


def all_levers(config: Config) -> list[Lever]:
    """Whatever could save memory in this run, the cheapest first; plugins that cannot be imported have no say, nor have other families."""
    found = list(core_levers(config))
    for name in sorted(installed()):
        try:
            plugin = load_class(name)
        except InputError:
            continue
        if name == config.family or not issubclass(plugin, FamilyPlugin):
            found += plugin.levers
    return sorted(found, key=lambda lever: (lever.price, assignments(lever)))


def core_levers(config: Config) -> Iterator[Lever]:
    """The core's own settings that save memory where they are not on yet."""
    run, optimizer = config.run, config.optimizer
    if run.cache is False:
        yield Lever({"run.cache": True}, "room on the disk, and a phase in which the cache is filled", 0.0)
    if (smaller := _smaller_batches(config)) is not None:
        yield smaller
    if run.gradient_checkpointing is False:
        yield Lever({"run.gradient_checkpointing": 2}, "every second block is computed twice", 0.17)
    if run.gradient_checkpointing is not True:
        yield Lever({"run.gradient_checkpointing": True}, "blocks are computed twice: about a third more time", 0.33)
    if run.activations == "device":
        told = "blocks are computed twice, and what is kept between them is copied to the machine and back"
        yield Lever({"run.gradient_checkpointing": True, "run.activations": "cpu"}, told, 0.45)  # alone it would fill the machine's memory
    if optimizer.type == "adamw":
        yield Lever({"optimizer.type": "adamw8bit"}, "the optimizer's state is rounded to eight bits", 0.5)
    if not optimizer.fused_backward_pass:
        unclipped = {} if optimizer.clip_norm is None else {"optimizer.clip_norm": False}
        told = "gradients are not clipped by their norm, and not accumulated"
        yield Lever({"optimizer.fused_backward_pass": True, **unclipped}, told, 0.6)
    if run.weights == "fp32":
        told = "small updates of the weights are rounded away" if config.trains_base else "frozen weights are rounded"
        yield Lever({"run.weights": "bf16"}, told, ROUNDED_AWAY if config.trains_base else 0.7)
    if run.weights == "fp32" and optimizer.type == "adamw":
        told = "weights have few digits, and are rounded by chance so that small updates count"
        yield Lever({"run.weights": "bf16", "optimizer.type": "adamw_stochastic"}, told, ROUNDED_AWAY / 2)


def assignments(lever: Lever) -> tuple[str, ...]:
    """The changes of a lever as `--set` takes them."""
    return tuple(f"{key}={written(value)}" for key, value in lever.changes.items())


def written(value: bool | float | str) -> str:
    """A value as `--set` takes it: as TOML has it, and words without quotes."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value) and value not in ("true", "false", "inf", "nan"):
        return value
    return json.dumps(value)


def _smaller_batches(config: Config) -> Lever | None:
    """One sample at a time, and as many before a step as there are now; None where that is so, or datasets differ."""
    samples = {number: table.batch_size for number, table in enumerate(config.datasets) if isinstance(table, SampleTable)}
    sizes = {size or config.run.batch_size for size in samples.values()}
    if len(sizes) != 1 or sizes == {1}:
        return None
    changes = {
        "run.batch_size": 1,
        **{f"datasets.{number}.batch_size": 1 for number, size in samples.items() if size is not None},
        "run.gradient_accumulation": config.run.gradient_accumulation * sizes.pop(),
    }
    return Lever(changes, "as many samples a step, one after the other: smaller batches take more time", 0.1)

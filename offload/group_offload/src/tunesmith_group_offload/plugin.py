"""The group offload plugin: which weights leave the device, and in which groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from tunesmith import Config, Family, Model, OutputPath, Part, Plugin, Run, Settings, Stage, Step, TrunkModule, Wrapper, hookimpl

from .groups import Group
from .schedule import Schedule, Stretch


class GroupOffloadSettings(Settings):
    """`[plugins.group_offload]`: which weights lie on the machine, and in which portions they visit the device."""

    level: Literal["block", "leaf"] = "block"
    """What comes and goes at a time: blocks, or single layers, which takes the least memory in forward and the most copies."""
    blocks_per_group: int = Field(1, ge=1)
    """block: how many blocks come and go together."""
    use_stream: bool = True
    """Bring the next group while one computes, so that at most two are there; on CUDA, elsewhere there is nothing to overlap."""
    pin_memory: bool = True
    """Keep the weights in memory that the system does not move, from which a GPU copies without waiting."""
    to_disk: OutputPath | None = None
    """Keep them in files below this folder instead of in memory; they are deleted when the run ends."""


class GroupOffload(Plugin[GroupOffloadSettings]):
    """Keep the frozen weights of the blocks off the device but for their own forward and backward."""

    stage = Stage.PLACE

    def __init__(self, name: str, settings: GroupOffloadSettings) -> None:
        super().__init__(name, settings)
        self.schedule: Schedule | None = None
        self._files: TemporaryDirectory[str] | None = None

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """A configuration in which backward would find weights gone, or nothing is saved."""
        place = ("plugins", self.name)
        if config.run.gradient_checkpointing is not True:
            yield (
                place,
                f"{self.name} lets the weights of a block go after its forward, so backward must compute it again: "
                "set [run] gradient_checkpointing = true",
            )
        if not any(config.classes[name].stage is Stage.ADAPT for name in config.plugins):
            yield (
                place,
                f"{self.name} offloads frozen weights, and without an adapter every weight is trained: it would save nothing; "
                "switch on an adapter such as lora, or take this table out",
            )
        if self.settings.level == "leaf" and "blocks_per_group" in self.settings.model_fields_set:
            yield (*place, "blocks_per_group"), 'blocks_per_group belongs to level = "block"; take it out, or change the level'

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """What stays on the device."""
        here = self.settings.blocks_per_group * (2 if self.settings.use_stream else 1)
        yield f"of {family.num_blocks} blocks the frozen weights of at most {min(here, family.num_blocks)} are on the device at a time"

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Place the denoiser: everything on the device but the frozen weights of its trunk."""
        model = yield
        if part is Part.DENOISER:
            stretches = stretches_of(model.trunk(), self.settings)
            groups = [Group(stretch.modules, run.device) for stretch in stretches]
            self._settle(groups, run)
            away = {id(tensor) for group in groups for tensor in group.tensors}
            for tensor in chain.from_iterable(chain(module.parameters(), module.buffers()) for module in model.modules()):
                if id(tensor) not in away:
                    tensor.data = tensor.data.to(run.device)
            model.placed = True
            streams = self.settings.use_stream and self.settings.level == "block" and run.device.type == "cuda"
            stream: Any = torch.cuda.Stream(run.device) if streams else None  # type: ignore[no-untyped-call]
            self.schedule = Schedule(stretches, groups, stream)
            here, there = sum(group.bytes for group in groups), "on the disk" if self._files else "on the machine"
            run.progress.message(f"{self.name}: {here / 1e9:.2f} GB of frozen weights lie {there}, in {len(groups)} groups")
        return model

    @hookimpl
    def on_step(self, run: Run, step: Step) -> None:
        """Let all groups go home: what optimizers and validation do needs none of them there."""
        if self.schedule is not None:
            self.schedule.rest()

    def _settle(self, groups: Sequence[Group], run: Run) -> None:
        """Where the weights are at home: as they were loaded, in pinned memory, or in files."""
        if self.settings.to_disk is not None:
            self.settings.to_disk.mkdir(parents=True, exist_ok=True)
            self._files = TemporaryDirectory(prefix=f"{self.name}-", dir=self.settings.to_disk)
        for number, group in enumerate(groups):
            if self._files is not None:
                group.keep_on_disk(Path(self._files.name) / f"{number:04d}.safetensors")
            elif self.settings.pin_memory and run.device.type == "cuda":
                group.pin()


def stretches_of(trunk: Sequence[TrunkModule], settings: GroupOffloadSettings) -> list[Stretch]:
    """What comes and goes together, in the order in which it runs; what lies between two blocks goes with the first of them."""
    if settings.level == "leaf":
        inner = ((module, entry.module) for entry in trunk for module in entry.module.modules() if not any(module.children()))
        return [Stretch([module], within) for module, within in inner if any(not one.requires_grad for one in module.parameters())]
    portions: list[list[nn.Module]] = []
    blocks = 0
    for entry in trunk:
        if not portions or (entry.is_block and blocks % settings.blocks_per_group == 0):
            portions.append([])
        blocks += entry.is_block
        portions[-1].append(entry.module)
    return [Stretch(modules, modules[0]) for modules in portions]

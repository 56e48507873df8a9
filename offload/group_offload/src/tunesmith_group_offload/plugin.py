"""The group offload plugin: which weights leave the device, and in which groups."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from safetensors import SafetensorError
from torch import nn

from tunesmith import (
    Config,
    Family,
    InputError,
    Lever,
    Model,
    OutputPath,
    Part,
    PipelineFamily,
    Plugin,
    Run,
    RunFailed,
    Settings,
    Stage,
    TrunkModule,
    Wrapper,
    hookimpl,
)

from .encoders import count_visits, offload_encoder
from .groups import Group, shared_weights, weights_of
from .schedule import Schedule, Stretch
from .scratch import Scratch, why_unusable


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
    """Keep frozen weights in files below this folder instead of in memory; they are deleted when they are no longer needed."""
    encoders: tuple[str, ...] = ()
    """Further networks that come and go by `level`, without streams: folders of the checkpoint such as `text_encoder` and `vae`."""

    @field_validator("encoders")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
        if twice is not None:
            raise ValueError(f"has {twice!r} twice; name it once")
        return names


class GroupOffload(Plugin[GroupOffloadSettings]):
    """Keep the weights of the blocks off the device but for their own forward and backward."""

    stage = Stage.PLACE
    levers = (
        Lever(
            {"plugins.group_offload.level": "block", "run.gradient_checkpointing": True},
            "blocks are computed twice and copied in and out each time; the machine's memory holds their weights, and where they are "
            "trained their gradients and the optimizer's state, too",
            0.8,
        ),
    )
    conflicts = MappingProxyType(
        {"cpu_offload": "each decides where the weights of the model lie; keep it where a step fits on the device"}
    )

    def __init__(self, name: str, settings: GroupOffloadSettings) -> None:
        super().__init__(name, settings)
        self.schedule: Schedule | None = None
        self._files: Scratch | None = None

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """A configuration in which backward would find weights gone, an update would be lost, or nothing is saved."""
        place, settings = ("plugins", self.name), self.settings
        if config.run.gradient_checkpointing is not True:
            yield (
                place,
                f"{self.name} lets the weights of a block go after its forward, so backward must compute it again: "
                "set [run] gradient_checkpointing = true",
            )
        if settings.level == "leaf" and "blocks_per_group" in settings.model_fields_set:
            yield (*place, "blocks_per_group"), 'blocks_per_group belongs to level = "block"; take it out, or change the level'
        if settings.level == "leaf" and config.run.compile:
            yield (
                (*place, "level"),
                'level = "leaf" brings weights between one layer and the next, and [run] compile would find no two layers to compile '
                'together; use "block", or take compile out',
            )
        if settings.level == "block" and self._most_here(config) >= family.num_blocks:
            yield (*place, "blocks_per_group"), self._too_many(config, family)
        if isinstance(family, PipelineFamily):
            yield from (((*place, "encoders"), sentence) for sentence in unknown(settings.encoders, family.encoder_types, family.name))
        if settings.to_disk is not None and (reason := why_unusable(settings.to_disk)) is not None:
            yield (*place, "to_disk"), f"to_disk: {reason}"
        if not config.trains_base:
            return
        if settings.to_disk is not None:
            yield (
                (*place, "to_disk"),
                "to_disk: files are written once, and without an adapter the weights in them would be trained: take it out, "
                "so that they lie in memory, or switch on an adapter such as lora",
            )
        if config.optimizer.fused_backward_pass:
            yield (
                ("optimizer", "fused_backward_pass"),
                f"fused_backward_pass updates the copy of a weight that {self.name} has on the device and lets go of: take it out",
            )
        if config.run.precision == "fp16":
            yield (
                ("run", "precision"),
                f'precision = "fp16": the scale of gradients is copied to the machine without waiting, and {self.name} has gradients there '
                'that are read at once; use "bf16"',
            )

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """What stays on the device, and what is done on the machine."""
        kind = "weights" if config.trains_base else "frozen weights"
        most = self._most_here(config) if self.settings.level == "block" else 1
        yield f"of {family.num_blocks} blocks the {kind} of at most {most} are on the device at a time"
        if config.trains_base:
            yield "gradients and the optimizer's state of the blocks lie on the machine, whose processor updates their weights"
        device = config.device.type
        if device == "cpu":
            yield "the run computes on the CPU, where the weights lie anyway: nothing is saved, and use_stream has nothing to overlap"
        elif device != "cuda" and self.settings.use_stream:
            yield f"use_stream is for CUDA and does nothing on {device}"

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Place a part: everything on the device but the weights that only visit it."""
        model = yield
        if part is Part.DENOISER:
            self._place_denoiser(run, model)
        elif self.settings.encoders:
            self._place_encoders(run, model, part)
        return model

    def _place_denoiser(self, run: Run, model: Model) -> None:
        stretches = stretches_of(model.trunk(), self.settings, model.trains_base)
        shared = shared_weights(model.denoiser, [stretch.modules for stretch in stretches])
        own = [[tensor for tensor in weights_of(stretch.modules) if tensor not in shared] for stretch in stretches]
        groups = [Group(tensors, run, model.trains_base) for tensors in own]
        away = {id(tensor) for group in groups for tensor in group.tensors}
        for tensor in weights_of(model.modules()):
            if id(tensor) not in away:
                tensor.data = tensor.data.to(run.device)
        model.placed = True
        streams = uses_streams(self.settings, run.device.type)
        stream: Any = torch.cuda.Stream(run.device) if streams else None  # type: ignore[no-untyped-call]
        self.schedule = Schedule(model.denoiser, stretches, groups, stream)
        model.denoiser.register_forward_hook(partial(rest_between_steps, run, self.schedule), always_call=True)
        if not run.is_rehearsal:
            self._settle(groups, run)
            size, kind = sum(group.bytes for group in groups), "trained" if model.trains_base else "frozen"
            where = "on the disk" if self._files else "on the machine"
            run.progress.message(f"{self.name}: {size / 1e9:.2f} GB of {kind} weights lie {where}, in {len(groups)} groups")

    def _place_encoders(self, run: Run, model: Model, part: Part) -> None:
        """What is asked for comes and goes, as far as the part has it; the rest is on the device."""
        if part is Part.ENCODERS:
            for sentence in unknown(self.settings.encoders, model.encoders, run.family.name):
                raise InputError(f"{self.name}: {sentence}")
        for name, network in model.encoders.items():
            if name not in self.settings.encoders:
                network.to(run.device)
                continue
            with self._writing():
                files = None if run.is_rehearsal else self._scratch()
                if files is not None:
                    weakref.finalize(network, files.delete)
                folder = None if files is None else files.path
                offload_encoder(name, network, self.settings.level, self.settings.blocks_per_group, run.device, folder)
            if run.is_rehearsal:
                count_visits(network, run)
        model.extra.to(run.device)
        model.placed = True

    def _settle(self, groups: Sequence[Group], run: Run) -> None:
        """Where the weights are at home: as they were loaded, in pinned memory, or in files."""
        with self._writing():
            self._files = self._scratch()
            for number, group in enumerate(groups):
                if self._files is not None:
                    group.keep_on_disk(self._files.path / f"{number:04d}.safetensors")
                elif self.settings.pin_memory and run.device.type == "cuda":
                    group.pin()

    def _scratch(self) -> Scratch | None:
        """A folder that is deleted with its content; None where nothing goes to the disk."""
        return None if self.settings.to_disk is None else Scratch(self.settings.to_disk, self.name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """RunFailed with what to do if the disk refuses."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise RunFailed(
                f"{self.name} cannot write below {self.settings.to_disk}: {reason}; "
                "make room, name another folder in to_disk, or take it out"
            ) from error

    def _most_here(self, config: Config) -> int:
        """The most blocks that are on the device at once."""
        return self.settings.blocks_per_group * (2 if uses_streams(self.settings, config.device.type) else 1)

    def _too_many(self, config: Config, family: Family) -> str:
        most, alone = self._most_here(config), self.settings.blocks_per_group
        found = f"blocks_per_group = {alone}: all of the {family.num_blocks} blocks could be on the device at a time"
        if most > alone:
            found += ", for with use_stream there are two groups"
        fewer = (family.num_blocks - 1) // (most // alone)
        return f"{found}; this saves nothing: " + (f"use at most {fewer}" if fewer else "set use_stream = false, or take this table out")


def rest_between_steps(run: Run, schedule: Schedule, *_: Any) -> None:
    """Let every group go home after a forward outside of a micro-batch, so that the update finds all weights and gradients there."""
    if run.current is None:
        schedule.rest()


def uses_streams(settings: GroupOffloadSettings, device: str) -> bool:
    """Whether the next group comes while one computes."""
    return settings.use_stream and settings.level == "block" and device == "cuda"


def unknown(names: Sequence[str], known: Collection[str], family: str) -> Iterator[str]:
    """A sentence on each network that is asked for and that the family lacks."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            guess = f"did you mean {near[0]!r}? It" if near else "it"
            yield f"encoders: {family} has no {name!r}; {guess} has {', '.join(known)}"


def is_layer(module: nn.Module, trains: bool) -> bool:
    """Whether a module holds no others, but perhaps an adapter: frozen weights of its own and below it trained ones alone."""
    below = [weight for child in module.children() for weight in child.parameters()]
    own = [*module.parameters(recurse=False)]
    adapted = not trains and bool(own) and not any(weight.requires_grad for weight in own) and all(one.requires_grad for one in below)
    return adapted or not any(module.children())


def stretches_of(trunk: Sequence[TrunkModule], settings: GroupOffloadSettings, trains: bool) -> list[Stretch]:
    """What comes and goes together, in the order in which it runs; what lies between two blocks goes with the first of them."""
    if settings.level == "leaf":
        inner = ((module, entry.module) for entry in trunk for module in entry.module.modules() if is_layer(module, trains))
        return [Stretch([one], within) for one, within in inner if any(trains or not weight.requires_grad for weight in one.parameters())]
    portions: list[list[nn.Module]] = []
    blocks = 0
    for entry in trunk:
        if not portions or (entry.is_block and blocks % settings.blocks_per_group == 0):
            portions.append([])
        blocks += entry.is_block
        portions[-1].append(entry.module)
    return [Stretch(modules, modules[0]) for modules in portions]

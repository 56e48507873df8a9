"""The LoRA plugin: adapters on the frozen denoiser, and the file that pipelines load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field, field_validator
from torch import Tensor, nn

from tunesmith import (
    LAST_RESORT,
    Config,
    Family,
    InputError,
    InputPath,
    Lever,
    Model,
    Part,
    Plugin,
    Run,
    Settings,
    Stage,
    Wrapper,
    hookimpl,
)

from .files import LoraFile, read_lora, write_lora
from .targets import is_pattern, target_modules

ADAPTER = "default"
"""The adapter's name within peft; diffusers' helpers look for this one."""


class LoraSettings(Settings):
    """`[plugins.lora]`: the adapter's size, where it attaches and what it starts from."""

    rank: int = Field(16, ge=1)
    """Rank of every update: its inner dimension."""
    alpha: float | None = Field(None, gt=0)
    """The update is scaled by alpha / rank; the rank when not given, or what the `init_from` file says."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) instead, which keeps high ranks from learning ever more slowly (rsLoRA)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are zeroed while training."""
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Names that layers end in, such as "to_q", or regular expressions for their whole path; the family's own when not given."""
    init_from: InputPath | None = None
    """LoRA file, or its folder, whose weights the adapter starts with; without it the adapter starts as no change."""

    @field_validator("targets")
    @classmethod
    def _patterns_compile(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for target in filter(is_pattern, targets or ()):
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(f"{target!r} is no regular expression: {error}") from None
        return targets


class Lora(Plugin[LoraSettings]):
    """Train low-rank adapters and leave the denoiser itself as it is (LoRA, 2106.09685)."""

    stage = Stage.ADAPT
    levers = (Lever({"plugins.lora.rank": 16}, "something else is learnt: an adapter beside the model, whose weights stay", LAST_RESORT),)

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """A file to start from that cannot be read or was trained at another scale, and targets that the model lacks."""
        try:
            self._file()
        except InputError as error:
            yield ("plugins", self.name, "init_from"), str(error)
        try:
            target_modules(family.on_meta(), self.settings.targets or family.adapter_targets, self.settings.rank)
        except InputError as error:
            yield ("plugins", self.name, "targets"), str(error)

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Attach the adapter to the denoiser; InputError if targets or the file to start from do not fit it."""
        model = yield
        if part is Part.DENOISER:
            self._attach(run, model)
        return model

    @hookimpl
    def save_checkpoint(self, run: Run, path: Path) -> None:
        """Write `pytorch_lora_weights.safetensors`, which `load_lora_weights` of the family's pipeline loads."""
        denoiser = run.model.denoiser
        weights = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
        if run.is_main:
            write_lora(path, weights, denoiser.peft_config[ADAPTER])

    def _attach(self, run: Run, model: Model) -> None:
        denoiser = model.denoiser
        if not isinstance(denoiser, PeftAdapterMixin):
            raise InputError(f"lora cannot adapt {type(denoiser).__name__} of {run.family.name}: diffusers loads no LoRA into it")
        file = self._file()
        targets = self.settings.targets or run.family.adapter_targets
        config = LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha or (file and file.alpha) or self.settings.rank,
            use_rslora=self.settings.rank_stabilized,
            lora_dropout=self.settings.dropout,
            target_modules=target_modules(denoiser, targets, self.settings.rank),
        )
        with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, from the global generator
            torch.default_generator.manual_seed(run.torch_generator("lora.init").initial_seed())
            denoiser.add_adapter(config, adapter_name=ADAPTER)
        for name, parameter in denoiser.named_parameters():
            parameter.requires_grad_(_is_adapter(name))
            if _is_adapter(name):
                parameter.data = parameter.data.float()
        if file is not None:
            self._start_from(file, denoiser)
        layers = [layer for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer)]
        model.adapters[self.name] = partial(_switched_off, layers)

    def _file(self) -> LoraFile | None:
        """The file to start from, which must have been trained at the same rank and scale."""
        if self.settings.init_from is None:
            return None
        file, settings = read_lora(self.settings.init_from), self.settings
        if file.ranks != [settings.rank]:
            ranks = " and ".join(map(str, file.ranks))
            advice = f"set `rank = {ranks}`" if len(file.ranks) == 1 else "one rank for all layers is needed"
            raise InputError(f"{file.path} has rank {ranks}, but `rank` is {settings.rank}: {advice}")
        if settings.alpha not in (None, file.alpha or settings.alpha):
            raise InputError(
                f"{file.path} was trained with alpha {file.alpha}, not {settings.alpha}: set `alpha = {file.alpha}` or leave it out"
            )
        if file.rank_stabilized is not settings.rank_stabilized:
            wanted = str(file.rank_stabilized).lower()
            raise InputError(f"{file.path} was trained with another scale: set `rank_stabilized = {wanted}`")
        return file

    def _start_from(self, file: LoraFile, denoiser: nn.Module) -> None:
        """Take up the weights of a file; InputError if they are for other layers."""
        expected: Mapping[str, Tensor] = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
        shared = expected.keys() & file.weights.keys()
        problems = {
            "has nothing for": sorted(expected.keys() - shared),
            "has weights beyond `targets` for": sorted(file.weights.keys() - shared),
            "has another shape for": sorted(name for name in shared if expected[name].shape != file.weights[name].shape),
        }
        for problem, names in problems.items():
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                advice = "`targets` and the model must be those that it was trained with"
                raise InputError(f"{file.path} {problem} {names[0]}{more}: {advice}")
        set_peft_model_state_dict(denoiser, dict(file.weights), adapter_name=ADAPTER)


def _is_adapter(name: str) -> bool:
    return f".{ADAPTER}." in name and ".lora_" in name


@contextmanager
def _switched_off(layers: list[Any]) -> Iterator[None]:
    """Run the layers without their adapters, and afterwards again as before."""
    active = [layer for layer in layers if not layer.disable_adapters]
    for layer in active:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in active:
            layer.enable_adapters(True)

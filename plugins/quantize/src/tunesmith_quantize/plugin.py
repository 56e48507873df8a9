"""The quantisation plugin: it packs what is frozen when it is loaded, and tells beforehand what that saves."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Literal

import torch
from pydantic import Field as Setting
from pydantic import field_validator, model_validator
from torch import nn

from tunesmith import (
    Config,
    Family,
    Field,
    InputError,
    Lever,
    Model,
    Part,
    PipelineFamily,
    PipelinePlugin,
    Plugin,
    Run,
    Settings,
    Stage,
    Wrapper,
    hookimpl,
)

from .formats import Format, FormatName, Outline, make_format, usable
from .selection import layers_of_encoder, layers_of_trunk, num_bytes, quantize_layers, size_text, tally, unmatched

RECIPE = "1"
"""Counts in the keys of the cache: another number where text encoders are quantised otherwise than before."""
TEXT_ENCODER = "text_encoder"
"""How the folders of text encoders begin in a pipeline of diffusers."""
NOTHING = "there is nothing left to quantise: no linear layer or convolution of one pixel"
"""What is told where no layer is chosen."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class QuantizeSettings(Settings):
    """`[plugins.quantize]`: in how few bits frozen weights are kept, and which of them."""

    format: FormatName | None = None
    """How the model's frozen weights are kept: a data type and the library that packs it; adapters are trained on top."""
    text_encoders: FormatName | None = None
    """The same for the text encoders while captions are encoded; embeddings that are in the cache are made anew."""
    on: Literal["cpu", "device"] = "device"
    """Where weights are packed, layer by layer: on the run's device, which is faster, or on the CPU."""
    double_quantization: bool = False
    """nf4-bnb and fp4-bnb: keep the scales in eight bits, too, which saves 0.37 bits a weight."""
    modules: tuple[str, ...] | None = Setting(None, min_length=1)
    """The model's layers to quantise: ends of names, or regular expressions for whole paths; all within the blocks when not given."""
    keep: tuple[str, ...] = ()
    """Layers that stay as they are, written like `modules`."""

    @field_validator("modules", "keep")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for pattern in patterns or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _does_something(self) -> QuantizeSettings:
        if self.format is None and self.text_encoders is None:
            raise ValueError('give `format`, such as "nf4-bnb", or `text_encoders`, or both')
        if self.format is None and (self.modules is not None or self.keep):
            raise ValueError("`modules` and `keep` are about the model's layers, and it is not quantised without `format`")
        if self.double_quantization and not any(name and name.endswith("4-bnb") for name in (self.format, self.text_encoders)):
            raise ValueError("`double_quantization` is for nf4-bnb and fp4-bnb; the other formats have no such scales")
        return self


class Quantize(Plugin[QuantizeSettings]):
    """Keep frozen weights in four or eight bits, and unpack each layer when it is used (QLoRA, 2305.14314)."""

    stage = Stage.CONVERT
    levers = (
        Lever({"plugins.quantize.format": "int8-bnb"}, "frozen weights are rounded to eight bits, and unpacked for every use", 1.1),
        Lever({"plugins.quantize.format": "nf4-bnb"}, "frozen weights are rounded to four bits, and unpacked for every use", 1.3),
        Lever({"plugins.quantize.text_encoders": "nf4-bnb"}, "captions are encoded by weights of four bits", 1.2),
    )

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Formats that cannot be had here or that the family refuses, layers that are not there, and weights that are to be trained."""
        settings, here = self.settings, ("plugins", self.name)
        for key, name in (("format", settings.format), ("text_encoders", settings.text_encoders)):
            if name is not None and (sentence := self._obstacle(name, config)) is not None:
                yield (*here, key), f'{key} = "{name}": {sentence}'
        if settings.text_encoders is not None and isinstance(family, PipelineFamily) and not _text_encoders(family.encoder_types):
            yield (*here, "text_encoders"), f"text_encoders: {family.name} has none; take this out"
        if settings.format is None:
            return
        if config.trains_base:
            yield (
                (*here, "format"),
                f"format: without an adapter the weights of {family.name} are themselves trained, and what is quantised has no gradient; "
                f"add [plugins.lora] or another adapter, or take this out",
            )
        if config.run.compile and config.run.gradient_checkpointing is not True:
            yield (
                (*here, "format"),
                "format: compiled blocks keep what they have unpacked until backward, and all of them together that is the whole model; "
                "set [run] gradient_checkpointing = true, or take compile out",
            )
        reason = family.refuses_quantisation.get(self.format.data_type)
        if reason is not None:
            yield (*here, "format"), f'format = "{settings.format}": {reason}'
        for key, patterns in (("modules", settings.modules or ()), ("keep", settings.keep)):
            for sentence in unmatched(family.on_meta(), patterns):
                yield (*here, key), f"{key}: {sentence}"
        outline = _outline(config, family)
        if outline is not None and not self._layers(outline):
            yield (*here, "keep" if settings.keep else "format"), f"{self.name}: {NOTHING}"

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """What the model takes with and without this, by its shapes."""
        outline = _outline(config, family)
        if self.settings.format is not None and outline is not None:
            yield str(tally(outline.denoiser, self._layers(outline), self.format, _DTYPES[config.run.weights]))

    def packs(self, config: Config, family: Family) -> Collection[str]:
        """The layers that are quantised; none where the family does not tell them without weights."""
        outline = None if self.settings.format is None else _outline(config, family)
        return () if outline is None else self._layers(outline)

    def alters(self, field: Field) -> str:
        """What is made of captions is made by the text encoders."""
        name = self.settings.text_encoders
        if name is None or field.per_sample:
            return ""
        return f"{name}{' double' if self.settings.double_quantization else ''} {RECIPE}"

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Pack the layers of the denoiser, or of the text encoders, and tell what that saved."""
        model = yield
        if part is Part.DENOISER and self.settings.format is not None:
            self._pack(run, "the model", model.denoiser, self._layers(model), self.format)
        if part is Part.ENCODERS and self.settings.text_encoders is not None:
            format = make_format(self.settings.text_encoders, self.settings.double_quantization)
            for name in _text_encoders(model.encoders):
                self._pack(run, name, model.encoders[name], layers_of_encoder(model.encoders[name]), format)
        return model

    @property
    def format(self) -> Format:
        """The denoiser's format; ValueError where it is not quantised."""
        if self.settings.format is None:
            raise ValueError("the denoiser is not quantised")
        return make_format(self.settings.format, self.settings.double_quantization)

    def _layers(self, model: Model) -> dict[str, nn.Linear | nn.Conv2d]:
        names = [entry.name for entry in model.trunk()]
        return layers_of_trunk(model.denoiser, names, self.settings.modules, self.settings.keep)

    def _pack(self, run: Run, what: str, network: nn.Module, layers: dict[str, nn.Linear | nn.Conv2d], format: Format) -> None:
        if not layers:
            raise InputError(f"{self.name}: of {what}, {NOTHING}")
        if run.is_rehearsal:
            quantize_layers(network, layers, Outline(format), run.device)
            return
        before, started = num_bytes(network), time.perf_counter()
        quantize_layers(network, layers, format, run.device if self.settings.on == "device" else torch.device("cpu"))
        run.progress.message(
            f"{self.name}: packed {len(layers)} layers of {what} in {format.name} within {time.perf_counter() - started:.1f} s: "
            f"it takes {size_text(num_bytes(network))} instead of {size_text(before)}"
        )

    def _obstacle(self, name: FormatName, config: Config) -> str | None:
        """Why a format cannot be had here, with those that can."""
        devices = (config.device,) if self.settings.on == "device" else (torch.device("cpu"), config.device)
        reason = make_format(name).obstacle(*devices)
        return None if reason is None else f"{reason}. Here there are {', '.join(usable(*devices)) or 'none'}"


def _outline(config: Config, family: Family) -> Model | None:
    """The family's model around a denoiser on the meta device; None of a family that is made in its own way."""
    kind = config.classes[config.family]
    return kind.model_type(family, family.on_meta(), {}) if issubclass(kind, PipelinePlugin) else None  # type: ignore[arg-type]


def _text_encoders(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(TEXT_ENCODER)]

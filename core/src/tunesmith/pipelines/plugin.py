"""The plugin of a family whose checkpoints are laid out as diffusers pipelines: loading, encoding, and what the cache is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import AutoTokenizer

from ..batch import LATENTS, LATENTS_STD, PIXELS, PROMPT_EMBEDS, Batch, Field, FieldShape
from ..config import Config
from ..data.given import REFERENCE
from ..errors import InputError
from ..family import Family, FamilyPlugin, Modality
from ..hooks import hookimpl
from ..hub import Component, fetch_tokenizer, fetch_weights, load_frozen
from ..model import Model
from ..plugin import Lever, Part
from ..run import Run
from .family import P, PipelineFamily
from .model import PipelineModel
from .outlines import Tokenizer, made
from .settings import DTYPES
from .tiles import refusals, save_memory

CLASS_FACTS = ("name", "modality", "adapter_targets", "pipeline_type", "denoiser_type", "encoder_types")
"""What the class of a family says, without which none can be made."""


class PipelinePlugin(FamilyPlugin[P]):
    """A family plugin that needs no more than `family_type` and `model_type`.

    A family that loads a part in its own way overrides `load_denoiser`, `load_encoder` or `load_tools`; one that writes
    more fields extends `written` and `fields`, and its model's `encode`.
    """

    family_type: ClassVar[type[PipelineFamily[Any]]]
    """The facts, made of the settings."""
    model_type: ClassVar[type[PipelineModel]]
    """The loaded model, made as `PipelineModel` is."""
    written: ClassVar[tuple[str, ...]] = (LATENTS, LATENTS_STD, PROMPT_EMBEDS)
    """Fields that the model may encode."""
    levers = (
        Lever({"model.vae_slicing": True}, "a little time while the cache is filled", 0.02),
        Lever({"model.vae_tiling": True}, "latents and pixels of samples larger than a tile change a little", 0.05),
    )

    def __init__(self, name: str, settings: P) -> None:
        super().__init__(name, settings)
        self._family: PipelineFamily[Any] | None = None

    def family(self) -> PipelineFamily[Any]:
        """The facts about the checkpoint; InputError if its configuration cannot be read, TypeError if the classes leave out facts."""
        if self._family is None:
            _require(type(self), "family_type", "model_type")
            _require(self.family_type, *CLASS_FACTS)
            family = self.family_type(self.settings)
            _require_facts(family)
            self._family = family
        return self._family

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What of `[validation]` the pipeline cannot sample with, references that would not be read, and what the autoencoder lacks."""
        for key, sentence in refusals(self.family()):
            yield ("model", key), sentence
        for number, table in enumerate(config.datasets):
            if table.kind == REFERENCE and self.family().first_frame_pipeline is not None:
                told = f"{family.name} is given the first frame of a clip itself; set is_i2v on the clips, and take this dataset out"
                yield ("datasets", number, "kind"), f'kind = "{REFERENCE}": {told}'
        for number, size in enumerate(config.validation.resolutions):
            width, height = map(int, size.split("x"))
            try:
                self.family().require_size(width, height)
            except InputError as error:
                yield ("validation", "resolutions", number), str(error)
        try:
            self.family().scheduler(config.validation.scheduler)
        except InputError as error:
            yield ("validation", "scheduler"), str(error)

    def fields(self, run: Run) -> Sequence[Field]:
        """Latents of pixels and embeddings of captions; encoder weights are downloaded here, so that they can be told apart."""
        latents = self.fingerprint(run, "vae")
        drawn = self.family().latent_distribution and run.config.run.latents == "sample"
        files = (*self.component("text_encoder").files, *self.tokenizer().files)
        prompts = f"{run.fingerprint(*files)} {self.settings.dtypes(run.device)['text_encoder']} {self.family().prompt_recipe}"
        return (
            Field(LATENTS, latents, per_sample=True),
            *([Field(LATENTS_STD, latents, per_sample=True)] if drawn else []),
            Field(PROMPT_EMBEDS, prompts, per_sample=False, ragged=True),
        )

    @hookimpl
    def load_model(self, run: Run, part: Part) -> Model:
        """Load the encoders, the denoiser or what decodes, frozen; the core places them."""
        family = self.family()
        if part is Part.DENOISER:
            denoiser = self.load_denoiser(self.component(family.denoiser_part), DTYPES[run.config.run.weights])
            family.prepare(denoiser)
            return self.model_type(family, denoiser, {})
        dtypes = self.settings.dtypes(run.device)
        names = family.encoder_types if part is Part.ENCODERS else family.decoder_parts
        encoders = {name: self.load_encoder(name, dtypes[name]) for name in names}
        if "vae" in encoders:
            save_memory(encoders["vae"], family)
        return self.model_type(family, None, encoders, self.load_tools() if part is Part.ENCODERS else {})

    def outline(self, run: Run, part: Part) -> PipelineModel:
        """The same of networks that are made from their configurations; encoders whose configuration is not known are left out."""
        family = self.family()
        if part is Part.DENOISER:
            denoiser = made(family.denoiser_type, family.configs[family.denoiser_part], DTYPES[run.config.run.weights])
            family.prepare(denoiser)
            return self.model_type(family, denoiser, {})
        dtypes = self.settings.dtypes(torch.device("cpu" if run.config.is_for_cpu else "cuda"))
        names = family.encoder_types if part is Part.ENCODERS else family.decoder_parts
        known = {name: family.configs[name] for name in names if name in family.configs}
        encoders = {name: made(family.encoder_types[name], config, dtypes[name]) for name, config in known.items()}
        if "vae" in encoders:
            save_memory(encoders["vae"], family)
        return self.model_type(family, None, encoders, {"tokenizer": Tokenizer()})

    def field_shapes(self, config: Config, family: Family, frames: int, height: int, width: int) -> dict[str, FieldShape]:
        """Latents, and embeddings of captions as long as they are read."""
        own = self.family()
        latents = FieldShape(own.latent_shape(frames, height, width), needs=(PIXELS,), encoder="vae")
        drawn = {LATENTS_STD: latents} if own.latent_distribution and config.run.latents == "sample" else {}
        _, key = own.fits["text_encoder"]
        prompts = FieldShape((own.prompt_length or 0, own.configs[own.denoiser_part][key]), True, needs=(), encoder="text_encoder")
        return {LATENTS: latents, **drawn, PROMPT_EMBEDS: prompts}

    @hookimpl
    def encode_batch(self, run: Run, batch: Batch) -> Batch:
        """Fill the family's fields where the batch wants them."""
        if any(map(batch.wants, self.written)):  # otherwise the encoders need not be loaded
            encoders = cast(PipelineModel, run.encoders)
            with torch.no_grad(), torch.autocast(run.device.type, enabled=False):
                encoders.encode(batch, run.device)
        return batch

    def load_denoiser(self, component: Component, dtype: torch.dtype) -> nn.Module:
        """The network that is trained, from its files."""
        denoiser: nn.Module = load_frozen(self.family().denoiser_type, component, dtype)
        return denoiser

    def load_encoder(self, name: str, dtype: torch.dtype) -> nn.Module:
        """One of the other networks, by its folder."""
        encoder: nn.Module = load_frozen(self.family().encoder_types[name], self.component(name), dtype)
        return encoder

    def load_tools(self) -> dict[str, Any]:
        """What encoding needs besides networks, by folder."""
        return {"tokenizer": AutoTokenizer.from_pretrained(self.tokenizer().folder)}

    def component(self, part: str) -> Component:
        """The files of a network, downloaded if they are not there yet."""
        place = self.family().place(part)
        return fetch_weights(place.origin, part, self.settings.weights_variant, or_root=place.alone)

    def tokenizer(self) -> Component:
        """The tokenizer's files, downloaded if they are not there yet."""
        place = self.family().place("tokenizer")
        return fetch_tokenizer(place.origin, or_root=place.alone)

    def fingerprint(self, run: Run, part: str) -> str:
        """What values made by an encoder depend on: its files and its precision, and of the autoencoder its tiles."""
        tiles = self.settings.tiles if part == "vae" else ""
        return f"{run.fingerprint(*self.component(part).files)} {self.settings.dtypes(run.device)[part]}{tiles}"


def _require(kind: type[Any], *names: str) -> None:
    lacking = [name for name in names if not hasattr(kind, name)]
    if lacking:
        raise TypeError(f"the class {kind.__name__} does not set {', '.join(lacking)}; write `{lacking[0]} = ...` in its body")


def _require_facts(family: PipelineFamily[Any]) -> None:
    """TypeError with what to write where a family that was made does not know all that it is asked."""
    name = type(family).__name__
    if not hasattr(family, "scale"):
        raise TypeError(f"{name} does not say what its latents stand for; call self.set_geometry(channels, scale, ...) in its __init__")
    if not hasattr(family, "num_blocks") or not hasattr(family, "token_width"):
        raise TypeError(
            f"{name} does not say how many blocks it has, or how wide they are; set self.num_blocks and self.token_width in its __init__"
        )
    if not hasattr(family, "defaults"):
        raise TypeError(f"{name} has no defaults; set self.defaults = FamilyDefaults(...) in its __init__")
    if family.modality is Modality.VIDEO and family.makes == "image":
        raise TypeError(f'{name} generates clips, and makes = "image" says that its samples are pictures; write makes = "clip" in its body')

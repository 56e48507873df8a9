"""The Sana plugin: which checkpoint, how its parts are loaded, and what the cache keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from transformers import AutoTokenizer, Gemma2Model

from tunesmith import (
    Batch,
    Component,
    Config,
    Family,
    FamilyPlugin,
    Field,
    InputError,
    Model,
    Part,
    Run,
    encode_captions,
    fetch_tokenizer,
    fetch_weights,
    hookimpl,
    load_frozen,
    make_scheduler,
)

from .attention import keep_full_precision
from .facts import read_facts
from .family import SanaFamily, check_sampling_size
from .model import LATENTS, PROMPT_EMBEDS, SanaModel
from .prompts import MAX_TOKENS, instruction_lines, text_encoder_of
from .settings import SanaSettings

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Sana(FamilyPlugin[SanaSettings]):
    """Fine-tune Sana and SANA-1.5: text to image."""

    family_type = SanaFamily

    def __init__(self, name: str, settings: SanaSettings) -> None:
        super().__init__(name, settings)
        self._family: SanaFamily | None = None

    def family(self) -> SanaFamily:
        """The facts about the checkpoint; InputError if its configuration cannot be read."""
        if self._family is None:
            instruction = instruction_lines(self.settings.complex_human_instruction)
            self._family = SanaFamily(read_facts(self.settings), instruction, text_from_elsewhere=self.settings.text_encoder is not None)
        return self._family

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Sizes and schedulers of `[validation]` that `SanaPipeline` cannot sample with."""
        for number, size in enumerate(config.validation.resolutions):
            width, height = map(int, size.split("x"))
            try:
                check_sampling_size(width, height)
            except InputError as error:
                yield ("validation", "resolutions", number), str(error)
        try:
            make_scheduler(self.family().facts.scheduler, config.validation.scheduler)
        except InputError as error:
            yield ("validation", "scheduler"), str(error)

    def fields(self, run: Run) -> Sequence[Field]:
        """Latents of pixels and embeddings of captions; encoder weights are downloaded here, so that they can be told apart."""
        vae, text_encoder = self._vae(), self._text_encoder()
        latents = f"{run.fingerprint(*vae.files)} {self._vae_dtype}"
        instruction = "\n".join(instruction_lines(self.settings.complex_human_instruction) or [])
        files = (*text_encoder.files, *self._tokenizer().files)
        prompts = f"{run.fingerprint(*files)} {self._text_dtype(run.device)} {MAX_TOKENS} {instruction}"
        return (
            Field(LATENTS, latents, per_sample=True),
            Field(PROMPT_EMBEDS, prompts, per_sample=False, ragged=True),
        )

    @hookimpl
    def load_model(self, run: Run, part: Part) -> Model:
        """Load the encoders, the transformer or the decoder, frozen; the core places them."""
        family, instruction = self.family(), instruction_lines(self.settings.complex_human_instruction)
        if part is Part.DENOISER:
            dtype = _DTYPES[run.config.run.weights]
            transformer = load_frozen(SanaTransformer2DModel, self._transformer(), dtype)
            keep_full_precision(transformer)
            return SanaModel(family, transformer, {}, None, instruction)
        encoders = {"vae": load_frozen(AutoencoderDC, self._vae(), self._vae_dtype)}
        if part is Part.DECODER:
            return SanaModel(family, None, encoders, None, instruction)
        encoders["text_encoder"] = load_frozen(Gemma2Model, self._text_encoder(), self._text_dtype(run.device))
        tokenizer = AutoTokenizer.from_pretrained(self._tokenizer().folder)
        return SanaModel(family, None, encoders, tokenizer, instruction)

    @hookimpl
    def encode_batch(self, run: Run, batch: Batch) -> Batch:
        """Fill latents and prompt embeddings where the batch wants them."""
        if not (batch.wants(LATENTS) or batch.wants(PROMPT_EMBEDS)):
            return batch  # without loading the encoders
        encoders = cast(SanaModel, run.encoders)
        with torch.no_grad(), torch.autocast(run.device.type, enabled=False):
            if batch.wants(LATENTS):
                if batch.pixels is None:
                    raise RuntimeError("latents are wanted of a batch that has no pixels")
                batch.fields[LATENTS] = encoders.encode_pixels(batch.pixels)
            if batch.wants(PROMPT_EMBEDS):
                encode = text_encoder_of(encoders.encoding_pipeline(), encoders.instruction, run.device)
                batch.fields[PROMPT_EMBEDS] = encode_captions(encode, batch.captions)
        return batch

    def _transformer(self) -> Component:
        return fetch_weights(self.family().facts.origin, "transformer", self.settings.weights_variant)

    def _vae(self) -> Component:
        return fetch_weights(self.family().facts.vae_origin, "vae", self.settings.weights_variant, or_root=self.settings.vae is not None)

    def _text_encoder(self) -> Component:
        origin, elsewhere = self.family().facts.text_origin, self.settings.text_encoder is not None
        return fetch_weights(origin, "text_encoder", self.settings.weights_variant, or_root=elsewhere)

    def _tokenizer(self) -> Component:
        return fetch_tokenizer(self.family().facts.text_origin, or_root=self.settings.text_encoder is not None)

    @property
    def _vae_dtype(self) -> torch.dtype:
        return _DTYPES[self.settings.vae_dtype]

    def _text_dtype(self, device: torch.device) -> torch.dtype:
        """The text encoder's precision; never fp16, in which Gemma 2 overflows."""
        if self.settings.text_encoder_dtype == "auto":
            return torch.float32 if device.type == "cpu" else torch.bfloat16
        return _DTYPES[self.settings.text_encoder_dtype]

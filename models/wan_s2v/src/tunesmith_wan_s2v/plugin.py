"""The Wan S2V plugin: how its parts are loaded, what the cache keeps, and what a step gives of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import nn
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Model

from tunesmith import (
    AUDIO,
    CONTROL,
    HISTORY,
    LATENTS,
    PIXELS,
    REFERENCE,
    Batch,
    Component,
    Config,
    Family,
    Field,
    FieldShape,
    Model,
    Origin,
    Part,
    PipelineModel,
    PipelinePlugin,
    Run,
    fetch_files,
    fetch_weights,
    hookimpl,
    load_frozen,
    read_json,
)

from .clips import FRAMES_PER_LATENT, MOTION_FRAMES
from .clips import latent_frames as latent_count
from .family import WanS2VFamily
from .fields import AUDIO_EMBEDS, AUDIO_RECIPE, CONTROL_LATENTS, MOTION_LATENTS, REFERENCE_LATENTS
from .model import Choice, WanS2VModel
from .settings import WanS2VSettings

_PROCESSOR_FILES = ("preprocessor_config", "processor_config")


class WanS2V(PipelinePlugin[WanS2VSettings]):
    """Fine-tune Wan 2.2 S2V: video of a speaking person from a picture, a sound and a text."""

    family_type = WanS2VFamily
    model_type = WanS2VModel
    written = (*PipelinePlugin.written, REFERENCE_LATENTS, AUDIO_EMBEDS, MOTION_LATENTS, CONTROL_LATENTS)

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Sizes, schedulers and lengths of `[validation]` that the pipeline cannot sample with."""
        yield from super().check(config, family)
        if config.validation.num_frames == 1:
            yield ("validation", "num_frames"), "num_frames = 1: wan_s2v makes clips of four frames or more behind the first; use 5 or more"

    def fields(self, run: Run) -> Sequence[Field]:
        """Latents, features of sound and embeddings of captions; encoder weights are downloaded here, so that they can be told apart."""
        by_vae = self.fingerprint(run, "vae")
        by_ear = f"{self.fingerprint(run, 'audio_encoder')} {run.fingerprint(*self._audio_processor().files)} {AUDIO_RECIPE}"
        fields = [
            *super().fields(run),
            Field(REFERENCE_LATENTS, by_vae, per_sample=True, needs=(PIXELS, REFERENCE), may_lack=(REFERENCE,)),
            Field(AUDIO_EMBEDS, by_ear, per_sample=True, needs=(AUDIO,)),
        ]
        if self.settings.motion:
            fields.append(Field(MOTION_LATENTS, by_vae, per_sample=True, ragged=True, needs=(PIXELS, HISTORY), may_lack=(HISTORY,)))
        if any(CONTROL in dataset.companions for dataset in run.datasets.values()):
            fields.append(Field(CONTROL_LATENTS, by_vae, per_sample=True, ragged=True, needs=(CONTROL,), may_lack=(CONTROL,)))
        return fields

    @hookimpl
    def load_model(self, run: Run, part: Part) -> Model:
        """Load a part, frozen; sound is encoded for validation, too. The core places what is loaded."""
        model = cast(WanS2VModel, super().load_model(run, part))
        model.choose = partial(self.choice, run)
        if part is not Part.DENOISER:
            model.tools["audio_processor"] = Wav2Vec2FeatureExtractor.from_pretrained(self._audio_processor().folder)
        return model

    def outline(self, run: Run, part: Part) -> PipelineModel:
        """A part without its weights, and without what brings a sound to its mean and variance: that takes nothing of the device."""
        model = cast(WanS2VModel, super().outline(run, part))
        model.choose = partial(self.choice, run)
        model.tools["audio_processor"] = None
        return model

    def field_shapes(self, config: Config, family: Family, frames: int, height: int, width: int) -> dict[str, FieldShape]:
        """Latents, embeddings, and what else the network is told."""
        shapes = super().field_shapes(config, family, frames, height, width)
        channels, latent_frames, *sides = shapes[LATENTS].shape
        transformer = self.family().configs["transformer"]
        shapes[REFERENCE_LATENTS] = FieldShape((channels, 1, *sides), needs=(PIXELS, REFERENCE), encoder="vae")
        sound = (transformer["num_weighted_avg_layers"], transformer["audio_dim"], FRAMES_PER_LATENT * latent_frames)
        shapes[AUDIO_EMBEDS] = FieldShape(sound, needs=(AUDIO,), encoder="audio_encoder")
        if self.settings.motion:
            before = (latent_count(MOTION_FRAMES), channels, *sides)
            shapes[MOTION_LATENTS] = FieldShape(before, ragged=True, needs=(PIXELS, HISTORY), encoder="vae")
        if any(table.kind == CONTROL for table in config.datasets):
            poses = (latent_frames, channels, *sides)
            shapes[CONTROL_LATENTS] = FieldShape(poses, ragged=True, needs=(CONTROL,), encoder="vae")
        return shapes

    def load_encoder(self, name: str, dtype: torch.dtype) -> nn.Module:
        """One of the encoders; that of sound as the class that it was saved from, so that no weight is left over or made up."""
        if name != "audio_encoder":
            return super().load_encoder(name, dtype)
        component = self.component(name)
        saved_from = read_json(Origin(str(component.folder)), ["config.json"]).get("architectures") or []
        kind = Wav2Vec2ForCTC if Wav2Vec2ForCTC.__name__ in saved_from else Wav2Vec2Model
        encoder: nn.Module = load_frozen(kind, component, dtype)
        return encoder

    def component(self, part: str) -> Component:
        """The files of a network; of the audio encoder never those of half precision."""
        if part != "audio_encoder":
            return super().component(part)
        place = self.family().place(part)
        return fetch_weights(place.origin, part, None, or_root=place.alone)

    def choice(self, run: Run, batch: Batch) -> Choice:
        """What the current step gives of its batch: drawn once, by position, from wherever and however often it is predicted.

        Outside of steps motion is left out, and nothing else. While evaluating, every sample keeps its sound.
        """
        step = run.current
        if step is None or step.batch is not batch:
            return Choice()
        kept = step.scratch[self.name]
        if "choice" not in kept:
            settings = self.settings
            motion = self._shares(run, "motion", step.position, 1)[0] < settings.motion
            shares = self._shares(run, "silence", step.position, len(batch)) if settings.audio_dropout and step.mode == "train" else []
            kept["choice"] = Choice(motion, tuple(row for row, share in enumerate(shares) if share < settings.audio_dropout))
        chosen: Choice = kept["choice"]
        return chosen

    def _shares(self, run: Run, purpose: str, position: int, count: int) -> list[float]:
        """Numbers from 0 to 1 that are drawn for a step."""
        shares: list[float] = run.numpy_generator(f"{self.name} {purpose}", position).random(count).tolist()
        return shares

    def _audio_processor(self) -> Component:
        place = self.family().place("audio_processor")
        return fetch_files(place.origin, "audio_processor", _PROCESSOR_FILES, or_root=place.alone)

"""Facts about a checkpoint in the layout of a diffusers pipeline, answered from its configurations alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from diffusers import ConfigMixin
from torch import nn
from transformers import AutoTokenizer

from ..errors import InputError
from ..family import Family, Modality, TokenGrid
from ..hub import Origin, UnreachableError, local_tokenizer, read_json
from ..sampling import make_scheduler
from .latents import LatentFactor, LatentStatistics
from .settings import PipelineSettings

P = TypeVar("P", bound=PipelineSettings)

SCHEDULER = "scheduler"
_WORDS = {"vae": "autoencoder"}


@dataclass(frozen=True)
class Place:
    """Where a part is looked for: in its folder of an origin, or, where it may be `alone`, at the top of that origin too."""

    origin: Origin
    alone: bool = False


class PipelineFamily(Family, Generic[P]):
    """Shapes and rules of one checkpoint, from the configurations of its parts.

    A subclass names the classes of the parts, and in its `__init__`, after `super().__init__(settings)`, calls
    `set_geometry`, sets `defaults` and what else differs from `Family`. `configs` are the parts' configurations by
    folder, complete with the defaults of their classes; `stated` is what the files themselves say. Where they cannot be
    read and the checkpoint is a published one, `known_by_heart` is true and they are those of `published`. Making a
    family raises InputError if a configuration is missing, is another class's, or does not fit the denoiser's.
    """

    pipeline_type: ClassVar[type[Any]]
    """The diffusers pipeline."""
    denoiser_type: ClassVar[type[Any]]
    """The class of the network that is trained."""
    encoder_types: ClassVar[Mapping[str, type[Any]]]
    """The classes of the other networks by folder, of diffusers or transformers; the autoencoder is called `vae`."""
    denoiser_part: ClassVar[str] = "transformer"
    """The denoiser's folder."""
    decoder_parts: ClassVar[tuple[str, ...]] = ("vae",)
    """The networks besides the denoiser that the pipeline samples with when embeddings are given."""
    fits: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """For encoders by folder: the key of their configuration that must equal this key of the denoiser's, in channels."""

    refuses = MappingProxyType({})
    latents_by_channel: ClassVar[bool] = False
    """Whether latents are normalised by the autoencoder's `latents_mean` and `latents_std`; otherwise by its `scaling_factor`."""
    timesteps_by_token: ClassVar[bool] = False
    """Whether the denoiser can be given a timestep for each token, [B, 1, F, H, W] of the token grid, besides one a sample."""
    first_frame_pipeline: ClassVar[type[Any] | None] = None
    """The diffusers pipeline of the same parts that is given a clip's first frame as `image`; `takes` then has `reference`."""

    sampling_multiple: int = 1
    """The pipeline samples in sizes that are multiples of this, and of `alignment` in any case."""
    instruction: str = ""
    """Put before every prompt that is not negative; it does not count as tokens of a caption."""
    prompt_length: int | None = None
    """Tokens that the pipeline pads prompt embeddings to, if it does."""
    prompt_recipe: str = ""
    """All that prompt embeddings depend on besides the caption and the text encoder's files and precision."""

    def __init__(self, settings: P) -> None:
        self.settings = settings
        self.variants = settings.checkpoints
        self.known_by_heart = False
        self.stated = self._read()
        kinds = {self.denoiser_part: self.denoiser_type, **self.encoder_types}
        self.configs: Mapping[str, Mapping[str, Any]] = {
            part: {**(class_defaults(kinds[part]) if part in kinds else {}), **config} for part, config in self.stated.items()
        }
        self._check()
        self.latents = self._measure()
        shift = self.configs[SCHEDULER].get("flow_shift", self.configs[SCHEDULER].get("shift"))
        self.noise_shift = None if shift is None else float(shift)
        denoiser = self.configs[self.denoiser_part]
        if {"num_layers", "num_attention_heads", "attention_head_dim"} <= denoiser.keys():  # others say so in their __init__
            self.num_blocks = denoiser["num_layers"]
            self.token_width = denoiser["num_attention_heads"] * denoiser["attention_head_dim"]

    def set_geometry(
        self, channels: int, scale: int, patch: tuple[int, int, int] = (1, 1, 1), frame_scale: int = 1, frame_step: int | None = None
    ) -> None:
        """Say what latents and tokens stand for; `latent_shape`, `token_grid` and the rules for frames follow from it.

        `scale` pixels along an edge, and of clips `frame_scale` frames after the first, are one latent; `patch` latents
        (frames, height, width) are a token; clips have 1 + k * `frame_step` frames (`frame_scale` if None).
        """
        self.channels, self.scale, self.patch, self.frame_scale = channels, scale, patch, frame_scale
        self.frame_step = frame_step or frame_scale
        self.alignment = scale * patch[1]

    @staticmethod
    def published(name: str) -> Mapping[str, Mapping[str, Any]] | None:
        """The configurations of the checkpoint of this short name, by folder, where they differ from their classes' defaults."""
        return None

    @staticmethod
    def prepare(denoiser: Any, /) -> None:
        """Change a denoiser that was just loaded, where diffusers' own cannot be trained as it is."""

    def place(self, part: str) -> Place:
        """Where a part is, by its folder."""
        where = self.settings.elsewhere().get(part)
        return Place(Origin(where), alone=True) if where else Place(Origin(self.settings.checkpoint, self.settings.revision))

    def pipeline_default(self, name: str) -> Any:
        """The default of one argument of the pipeline's `__call__`."""
        return inspect.signature(self.pipeline_type.__call__).parameters[name].default

    def scheduler(self, name: str | None = None) -> Any:
        """A new scheduler to sample with: the checkpoint's own, or the named one; InputError for a name that is unknown."""
        return make_scheduler(self.configs[SCHEDULER], name)

    def round_frames(self, frames: int) -> int:
        """The nearest number of frames, downwards, that can be encoded; images have one."""
        return 1 if self.modality is Modality.IMAGE else max(frames - 1, 0) // self.frame_step * self.frame_step + 1

    def frame_spans(self, frames: int) -> tuple[range, ...]:
        """For each latent frame the frames of the pixels: the first stands for one, each other for `frame_scale`."""
        return (range(1), *(range(end - self.frame_scale, end) for end in range(1 + self.frame_scale, frames + 1, self.frame_scale)))

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """The shape of one sample's latents: (channels, height, width), of clips (channels, frames, height, width)."""
        sides = height // self.scale, width // self.scale
        return (self.channels, *sides) if self.modality is Modality.IMAGE else (self.channels, len(self.frame_spans(frames)), *sides)

    def token_grid(self, frames: int, height: int, width: int) -> TokenGrid:
        """The token grid for pixels of this size."""
        return self.grid_of(len(self.frame_spans(frames)), height // self.scale, width // self.scale)

    def grid_of(self, frames: int, height: int, width: int) -> TokenGrid:
        """The token grid for so many latents."""
        return TokenGrid(frames // self.patch[0], height // self.patch[1], width // self.patch[2])

    def count_tokens(self, captions: Sequence[str]) -> list[int] | None:
        """How many tokens the text encoder reads of each caption; None where the tokenizer is not on this machine."""
        place = self.place("tokenizer")
        folder = local_tokenizer(place.origin, or_root=place.alone)
        if folder is None or not captions:
            return None if folder is None else []
        tokenizer = AutoTokenizer.from_pretrained(folder)
        before = len(tokenizer.encode(self.instruction)) if self.instruction else 0
        return [len(tokens) - before for tokens in tokenizer([self.instruction + self.as_read(one) for one in captions]).input_ids]

    def as_read(self, caption: str) -> str:
        """The caption as the pipeline gives it to the tokenizer."""
        return caption

    def on_meta(self) -> nn.Module:
        """The denoiser on the meta device."""
        with torch.device("meta"):
            model: nn.Module = self.denoiser_type.from_config(dict(self.configs[self.denoiser_part]))
        return model

    def require_size(self, width: int, height: int) -> None:
        """InputError with the nearest size if the pipeline cannot sample at this one."""
        step = math.lcm(self.sampling_multiple, self.alignment)
        if width % step or height % step:
            near = "x".join(str(max(round(edge / step), 1) * step) for edge in (width, height))
            raise InputError(
                f"a validation size of {width}x{height} cannot be sampled: {self.name} paints in multiples of {step}; use {near}"
            )

    def _read(self) -> Mapping[str, Mapping[str, Any]]:
        """What the files say, by part; what is known by heart where they cannot be had, and nothing of encoders that nobody knows."""
        described = [self.denoiser_part, SCHEDULER, *(part for part, kind in self.encoder_types.items() if issubclass(kind, ConfigMixin))]
        names = {where: name for name, where in self.settings.checkpoints.items()}
        known = self.published(names[self.settings.checkpoint]) if self.settings.checkpoint in names else None
        try:
            found = {part: self._stated(part) for part in described}
        except UnreachableError:
            if known is None or any(self.place(part).alone for part in described):
                raise
            found, self.known_by_heart = {part: dict(known.get(part, {})) for part in described}, True
        others = {part: self._stated_or_known(part, known or {}) for part in self.encoder_types if part not in described}
        return {**found, **{part: config for part, config in others.items() if config is not None}}

    def _stated_or_known(self, part: str, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """What is said of an encoder of transformers, whose files are not needed before it is loaded; None where nobody knows."""
        place = self.place(part)
        if place.alone or self._is_here(part):
            return self._stated(part)
        if not place.origin.is_local and not self.known_by_heart:
            try:
                return self._stated(part)
            except UnreachableError:
                pass
        return known.get(part)

    def _is_here(self, part: str) -> bool:
        origin = self.place(part).origin
        return origin.is_local and (Path(origin.where) / part / "config.json").is_file()

    def _stated(self, part: str) -> dict[str, Any]:
        place, file = self.place(part), f"{SCHEDULER}_config.json" if part == SCHEDULER else "config.json"
        return read_json(place.origin, [f"{part}/{file}", *(["config.json"] if place.alone else [])])

    def _check(self) -> None:
        """Refuse parts of other classes, and those that do not fit together."""
        trained = self.denoiser_type.__name__
        self._require(self.denoiser_part, "_class_name", trained, f"trains a {trained}")
        for part, kind in self.encoder_types.items():
            if part not in self.configs:
                continue
            if issubclass(kind, ConfigMixin):
                self._require(part, "_class_name", kind.__name__, f"needs an {kind.__name__}")
            else:
                wanted = kind.config_class.model_type
                self._require(part, "model_type", wanted, f"needs {wanted}", f"{_words(part)} of type ")
            if part in self.fits:
                key, taken_as = self.fits[part]
                made, taken = self.configs[part].get(key), self.configs[self.denoiser_part][taken_as]
                if made != taken:
                    raise InputError(
                        f"the {_words(part)} of {self.place(part).origin} makes {made} channels, "
                        f"but the {_words(self.denoiser_part)} of {self.place(self.denoiser_part).origin} takes {taken}"
                    )

    def _measure(self) -> LatentFactor | LatentStatistics:
        """How latents are normalised; defaults of a class are the statistics of other weights, so the file must name them."""
        vae = self.configs["vae"]
        if not self.latents_by_channel:
            if vae.get("latents_mean") is not None:
                raise InputError(
                    f"the autoencoder of {self.place('vae').origin} has latents_mean, and the family {self.name} normalises latents by one "
                    "factor alone; take an autoencoder without, or set `latents_by_channel = True` in the family"
                )
            return LatentFactor.read(vae)
        key, _ = self.fits["vae"]
        return LatentStatistics.read(vae if self.known_by_heart else self.stated["vae"], vae[key], self.place("vae").origin)

    def _require(self, part: str, key: str, wanted: str, sentence: str, what: str = "") -> None:
        found = self.configs[part].get(key, wanted if key == "_class_name" else None)
        if found != wanted:
            shown = repr(found) if what else found
            raise InputError(f"{self.place(part).origin} holds a {what}{shown}; the family {self.name} {sentence}")


def class_defaults(kind: type) -> dict[str, Any]:
    """The arguments that a class of diffusers has defaults for; nothing for one of transformers, whose files say all."""
    if not issubclass(kind, ConfigMixin):
        return {}
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def _words(part: str) -> str:
    return _WORDS.get(part, part.replace("_", " "))

"""What a model family answers from its configuration alone, without weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, TypeVar

from torch import nn

from .plugin import Part, Plugin, Settings, Stage

if TYPE_CHECKING:
    from .model import Model
    from .run import Run


class Modality(Enum):
    """What a family generates."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True)
class TokenGrid:
    """The grid of tokens that latents become, counted in tokens; the order is frame, row, column."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """How many tokens the grid has."""
        return self.frames * self.height * self.width


@dataclass(frozen=True)
class FamilyDefaults:
    """What a family uses where the config is silent; sizes are (width, height) in pixels."""

    size: tuple[int, int]
    frames: int
    fps: float
    guidance: float
    sampling_steps: int
    aligned_block: int
    """The block whose hidden states are compared with those of a vision encoder."""


@dataclass(frozen=True)
class Sound:
    """The sound that a family is trained with, beside its clips; `required` where clips without it cannot be used."""

    sample_rate: int
    channels: int
    required: bool


class Family(ABC):
    """Facts about one checkpoint of a family: shapes, names, rules. Nothing here touches a weight."""

    name: str
    modality: Modality
    alignment: int
    """Width and height in pixels are multiples of this."""
    adapter_targets: tuple[str, ...]
    """Names of the linear layers that adapters attach to by default."""
    variants: Mapping[str, str]
    """Known checkpoints: short name to Hub id."""
    defaults: FamilyDefaults
    refuses: Mapping[str, str]
    """Plugins and config tables that this family cannot work with, each with the reason."""
    num_blocks: int
    """Transformer blocks of the trunk."""
    token_width: int
    """Width of the hidden states between the blocks: D of [B, tokens, D]."""
    noise_shift: float | None
    """The shift of the checkpoint's own sigma schedule, used where `[noise] shift` is not given."""
    timestep_scale: float = 1000.0
    """What the model is given is sigma times this."""

    cautions: Mapping[str, str] = MappingProxyType({})
    """Plugins that work with this family, each with what one should know before it is used; told, and no more."""
    makes: str = "image"
    """The kind of media that `Model.sample` gives: `image` or `clip`; an active plugin must bring a writer for others than `image`."""
    takes: Mapping[str, bool] = MappingProxyType({})
    """What a sample may be given beside its caption, and whether it must be when one is made: `reference` (a picture),
    `audio`, `control` (a clip, such as one of poses). In training, `reference` and `control` are companions of a sample."""
    history: int = 0
    """How many frames before a clip's window the input `history` holds."""
    refuses_quantisation: Mapping[str, str] = MappingProxyType({})
    """Formats in which the frozen weights cannot be kept, such as nf4, each with the reason."""
    dispatched_attention: str | None = None
    """Which of the denoiser's attention goes through diffusers' dispatcher of kernels, in words; None where none does."""
    masks_attention: bool = False
    """Whether that attention is given masks, which some kernels cannot take."""
    sound: Sound | None = None
    """The sound that clips are trained with, or None."""
    image_to_video: bool = False
    """Whether a clip can be trained with its first frame given: its sigma 0, and no loss on it."""
    image_to_video_reason: str = "without it clips are trained as a whole"
    """What is told where `is_i2v` is refused: how clips are trained by a family that cannot be trained so."""
    latent_distribution: bool = False
    """Whether the autoencoder gives a distribution: with `[run] latents = "sample"` the family then writes, beside
    `latents`, which are its mean, the field `latents_std` of the same shape."""
    caption_tokens: int | None = None
    """How many tokens of a caption the text encoder reads, or None where that is not known."""

    def count_tokens(self, captions: Sequence[str]) -> list[int] | None:
        """How many tokens each caption has, as `caption_tokens` counts them; None where the tokenizer cannot be had here."""
        return None

    def round_frames(self, frames: int) -> int:
        """The nearest number of frames, downwards, that the family can encode; images have one."""
        return 1

    def frame_spans(self, frames: int) -> tuple[range, ...]:
        """For each frame of a sample's latents the frames of its pixels that it stands for."""
        return (range(frames),)

    def last_frames(self, frames: int, height: int, width: int) -> list[int]:
        """For each frame of the token grid the last frame of the pixels that it stands for."""
        spans = self.frame_spans(frames)
        together = len(spans) // self.token_grid(frames, height, width).frames
        return [min(span.stop, frames) - 1 for span in spans[together - 1 :: together]]

    @abstractmethod
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """The shape of one sample's latents, without the batch, for pixels of this size."""

    def cached_values(self, frames: int, height: int, width: int, before: int = 0) -> int:
        """How many values of fp32 the cache keeps of one sample: its latents, and what the family keeps beside them.

        The pixels are those of `latent_shape`; `before` frames of its file come before the sample's window. Captions,
        masks and the spread of latents are not counted.
        """
        return math.prod(self.latent_shape(frames, height, width))

    @abstractmethod
    def token_grid(self, frames: int, height: int, width: int) -> TokenGrid:
        """The token grid for pixels of this size."""

    @abstractmethod
    def on_meta(self) -> nn.Module:
        """The denoiser on the meta device: every shape, no memory."""

    @classmethod
    @abstractmethod
    def tiny(cls, folder: Path, seed: int = 0) -> Path:
        """Write a random twin of at most 2 M parameters below `folder`, in the layout of a real checkpoint; return it."""


F = TypeVar("F", bound=Settings)


class FamilyPlugin(Plugin[F]):
    """A plugin that brings a model family: it answers for a checkpoint, and provides `load_model` and `encode_batch`."""

    stage = Stage.LOAD
    family_type: ClassVar[type[Family]]
    """The class of what `family` answers; its `tiny` writes a twin."""

    @abstractmethod
    def family(self) -> Family:
        """The facts about the checkpoint that the settings name; InputError if its configuration cannot be read."""

    def outline(self, run: Run, part: Part) -> Model | None:
        """What `load_model` gives, from configurations alone: shapes count, values do not; None where that is not known.

        The forecast of memory goes through a step with it, on tensors that hold nothing.
        """
        return None

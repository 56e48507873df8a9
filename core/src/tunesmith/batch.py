"""What travels from the data to the model: samples and the fields computed from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

PIXELS, AUDIO, HISTORY = "pixels", "audio", "history"
"""Inputs that a kind of dataset decodes of a sample's own file; every other input is the role of a companion dataset."""
LATENTS, LATENTS_STD, PROMPT_EMBEDS = "latents", "latents_std", "prompt_embeds"
"""Fields of every family: what is trained to be made, its deviation where it is drawn; and what most make of a caption."""


@dataclass(frozen=True)
class Field:
    """One value that an `encode_batch` writes, and all that the cache must know of it.

    `fingerprint` names everything besides the sample that the value depends on: encoder weights and settings.
    `per_sample` values belong to one sample's pixels, geometry and window; the others to one caption, and are shared
    by every sample that has it. `ragged` values differ in their first dimension and are kept without padding.
    `needs` are the inputs that a per-sample value is made of and that must be decoded for it: `pixels`, `audio` (the
    sound of the sample's own window), `history` (the frames before it), or the role of a companion dataset such as
    `mask`. Those in `may_lack` are not in the batch where a dataset does not give them; without the others a dataset
    cannot be used. `companions` names further files that the value is made of; their contents count too. While training, a
    field is left out of batches from when `is_needed` first says no; what it says must not turn back.
    """

    key: str
    fingerprint: str
    per_sample: bool
    ragged: bool = False
    companions: Callable[[Source], Sequence[Path]] | None = None
    needs: tuple[str, ...] = (PIXELS,)
    may_lack: tuple[str, ...] = ()
    is_needed: Callable[[], bool] | None = None


@dataclass(frozen=True)
class FieldShape:
    """What one sample's value of a field looks like; of ragged ones as long as they get.

    With `needs` the forecast of memory also goes through how the value is made: of these inputs, as a `Field` has them, and
    where there are none of the caption. `encoder` names the one of the model's encoders that makes it; what a plugin makes
    without them has none.
    """

    shape: tuple[int, ...]
    ragged: bool = False
    dtype: torch.dtype = torch.float32
    needs: tuple[str, ...] | None = None
    encoder: str | None = None


@dataclass(frozen=True)
class Caption:
    """A text to encode; `negative` marks what a sampler steers away from, which some families encode differently."""

    text: str
    negative: bool = False


@dataclass(frozen=True)
class Window:
    """The part of a clip that a sample is made of: `frames` frames from `start` seconds on, `fps` a second."""

    start: float
    frames: int
    fps: float


@dataclass(frozen=True)
class Crop:
    """How a sample's pixels are made: resize to `resize`, then cut `size` out at `offset`; all (width, height) or (left, top)."""

    resize: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]


@dataclass(frozen=True)
class Source:
    """What is known of one sample before anything is decoded or encoded.

    `companions` are the files that datasets with `of` pair with this one, by role: its mask, the sound beside a clip.
    """

    dataset: str
    file: Path
    caption: Caption
    crop: Crop
    window: Window | None = None
    companions: tuple[tuple[str, Path], ...] = ()

    def companion(self, role: str) -> Path | None:
        """The file that plays a role for this sample, or None."""
        return dict(self.companions).get(role)

    def __str__(self) -> str:
        return f"{self.dataset}:{self.file}"


def moved(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; without waiting, except for copies to the CPU, which are read at once."""
    return value.to(device, non_blocking=device.type != "cpu")


class Ragged:
    """Values of a batch whose first dimensions differ: one tensor [n_i, ...] a sample."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        self.values = list(values)

    def padded(self, length: int | None = None) -> tuple[Tensor, Tensor]:
        """The values padded with zeros to `length` (the longest if None) and the mask of what is real.

        Returns [B, length, ...] and a boolean [B, length].
        """
        length = length or max(value.shape[0] for value in self.values)
        first = self.values[0]
        if all(value.shape[0] == length for value in self.values):
            return torch.stack(self.values), torch.ones((len(self.values), length), dtype=torch.bool, device=first.device)
        out = first.new_zeros((len(self.values), length, *first.shape[1:]))
        mask = torch.zeros((len(self.values), length), dtype=torch.bool, device=first.device)
        for row, value in enumerate(self.values):
            out[row, : value.shape[0]] = value
            mask[row, : value.shape[0]] = True
        return out, mask

    def to(self, device: torch.device) -> Ragged:
        """The same values on another device."""
        return Ragged([moved(value, device) for value in self.values])


FieldValue: TypeAlias = Tensor | Ragged


@dataclass
class Batch:
    """Some samples of one bucket, their inputs where an encoder asked for them, and their fields.

    `inputs` are decoded and not encoded, by name: `pixels` in [-1, 1], [B, C, H, W] for images and [B, C, F, H, W] for
    video; `audio` in [-1, 1], [B, channels, samples], of pictures without samples; `history` like the pixels, 0 before the
    clip's beginning; `reference` and `control` like the pixels of a picture and a clip; `mask` in [0, 1], [B, 1, H, W] or
    [B, 1, F, H, W]. While encoding, `wanted` names the fields to fill; a batch of captions alone has captions and no sources.
    """

    sources: tuple[Source, ...] = ()
    captions: tuple[Caption, ...] = ()
    inputs: dict[str, Tensor] = field(default_factory=dict)
    fields: dict[str, FieldValue] = field(default_factory=dict)
    wanted: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def pixels(self) -> Tensor | None:
        """The decoded pixels, or None where no encoder asked for them."""
        return self.inputs.get(PIXELS)

    def wants(self, key: str) -> bool:
        """Whether the field is asked for and not there yet."""
        return key in self.wanted and key not in self.fields

    def tensor(self, key: str) -> Tensor:
        """The field as one tensor [B, ...]; TypeError if it is ragged, KeyError with the known names if absent."""
        value = self._field(key)
        if isinstance(value, Ragged):
            raise TypeError(f"field {key!r} is ragged; use batch.ragged({key!r}).padded()")
        return value

    def ragged(self, key: str) -> Ragged:
        """The field as ragged values; TypeError if it is one tensor, KeyError with the known names if absent."""
        value = self._field(key)
        if isinstance(value, Tensor):
            raise TypeError(f"field {key!r} is one tensor; use batch.tensor({key!r})")
        return value

    def _field(self, key: str) -> FieldValue:
        if key not in self.fields:
            raise KeyError(f"the batch has no field {key!r}; it has {', '.join(sorted(self.fields)) or 'none'}")
        return self.fields[key]

    def to(self, device: torch.device) -> Batch:
        """The same batch with inputs and fields on another device."""
        inputs = {key: moved(value, device) for key, value in self.inputs.items()}
        fields: dict[str, FieldValue] = {
            key: value.to(device) if isinstance(value, Ragged) else moved(value, device) for key, value in self.fields.items()
        }
        return Batch(self.sources, self.captions, inputs, fields, self.wanted)

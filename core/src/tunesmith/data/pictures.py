"""The core's own kinds of datasets: pictures, and masks of other datasets' samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..batch import AUDIO, PIXELS, Crop, Source, Window
from ..config.datasets import ImageTable, MaskTable, PixelTable
from ..family import Family, Modality
from ..kinds import Kind, Piece, Probe, Unfit
from .geometry import (
    MOST_CUT,
    Target,
    center_crop,
    chosen_aspect,
    corner_crop,
    downsampled,
    measured,
    random_crop,
    rule_of,
    target_size,
    too_elongated,
)
from .given import ControlKind, ReferenceKind
from .images import MAX_PIXELS, OTHER_SUFFIXES, SUFFIXES, TRANSFORM, load_mask, load_pixels, probe

MASK = "mask"
"""The role of masks, and the field that they become."""


T = TypeVar("T", bound=PixelTable)


class PixelKind(Kind[T]):
    """What the kinds of pictures and clips have in common: which size they are trained at, and which part of them."""

    def __init__(self, table: T, family: Family) -> None:
        super().__init__(table, family)
        self.rule = rule_of(table, family)

    def target(self, probe: Probe, name: str) -> Target:
        """The bucket of a file with frames of `probe.size`; Unfit if the settings leave it out."""
        table, (width, height) = self.table, probe.size
        found = f"{width}x{height}"
        if width * height > table.max_pixels:
            raise Unfit("readable", f"more pixels than max_pixels = {table.max_pixels}", found)
        if table.minimum_size is not None and measured(probe.size, table.resolution_type) < table.minimum_size:
            raise Unfit("sized", f"smaller than minimum_size = {table.minimum_size:g}", found)
        if table.minimum_aspect is not None and width / height < table.minimum_aspect:
            raise Unfit("bucketed", f"narrower than minimum_aspect = {table.minimum_aspect:g}", found)
        if table.maximum_aspect is not None and width / height > table.maximum_aspect:
            raise Unfit("bucketed", f"wider than maximum_aspect = {table.maximum_aspect:g}", found)
        target = target_size(probe.size, self.rule, chosen_aspect(probe.size, table, name))
        if too_elongated(target):
            raise Unfit("sized", f"too elongated: less than 1/{MOST_CUT} would be left", found)
        return downsampled(target, probe.size, table)

    @property
    def draws(self) -> bool:
        """Whether crops are drawn."""
        return self.table.crop == "random"

    def crop(self, target: Target, generator: np.random.Generator | None) -> Crop:
        """The part of the resized frame that the settings fix, or one drawn; the middle where there is nothing to draw with."""
        if self.table.crop == "random" and generator is not None:
            return random_crop(target, generator)
        return corner_crop(target) if self.table.crop == "corner" else center_crop(target)


class ImageKind(PixelKind[ImageTable]):
    """Pictures, each one sample."""

    table_type = ImageTable
    suffixes = SUFFIXES
    other_suffixes = OTHER_SUFFIXES
    probing = "image-1"
    modalities = frozenset({Modality.IMAGE, Modality.VIDEO})

    @classmethod
    def probe(cls, file: Path) -> Probe:
        """The upright size."""
        width, height = probe(file)
        return Probe(width, height)

    def pieces(self, probe: Probe, name: str) -> tuple[Piece, ...]:
        """The whole picture."""
        return (Piece(self.target(probe, name)),)

    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        """The crop."""
        return self.crop(piece.target, generator), None

    def recipe(self, need: str) -> str:
        """How pixels are made of a picture, and sound of none."""
        if need == AUDIO and self.family.sound is not None:
            return "still"
        return TRANSFORM if need == PIXELS else super().recipe(need)

    def load(self, source: Source, need: str) -> Tensor:
        """Pixels [3, H, W] in [-1, 1], or for families with sound that of a picture: none, [channels, 0]."""
        if need == AUDIO and self.family.sound is not None:
            return torch.zeros((self.family.sound.channels, 0))
        return load_pixels(source, self.table.max_pixels) if need == PIXELS else super().load(source, need)


class MaskKind(Kind[MaskTable]):
    """Masks of another dataset's samples: pictures, or for clips of its kind also clips."""

    table_type = MaskTable
    suffixes = SUFFIXES
    other_suffixes = OTHER_SUFFIXES
    probing = "image-1"
    modalities = frozenset()
    role = MASK

    def serving(self, host: Kind[Any]) -> MaskKind:
        """Masks of clips are also clips, of the endings that the host reads."""
        return self if isinstance(host, ImageKind) else _with_clips(host)(self.table, self.family)

    @classmethod
    def probe(cls, file: Path) -> Probe:
        """The upright size."""
        return ImageKind.probe(file)

    def pieces(self, probe: Probe, name: str) -> tuple[Piece, ...]:
        """A mask is no sample of its own."""
        raise Unfit("sized", "a mask belongs to a sample of another dataset")

    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        """A mask has the part of its sample."""
        raise NotImplementedError("a mask has the part of its sample")

    def recipe(self, need: str) -> str:
        """How masks are made."""
        return f"mask-1 {TRANSFORM}" if need == MASK else super().recipe(need)

    def companion(self, source: Source, file: Path | None, host: Kind[Any]) -> Tensor:
        """How much each place of a sample counts, in [0, 1]: [1, H, W], of a clip [1, F, H, W].

        Grey values; in colours their mean. A sample without a mask counts in full.
        """
        if file is None:
            full = full_mask(source)
            return full if source.window is None else full.expand(-1, source.window.frames, -1, -1)
        if file.suffix.lower() in SUFFIXES:
            limit = host.table.max_pixels if isinstance(host, PixelKind) else MAX_PIXELS
            mask = load_mask(file, source.crop, limit)  # [1, H, W]
            return mask if source.window is None else mask.unsqueeze(1).expand(-1, source.window.frames, -1, -1)
        pixels = host.load(replace(source, file=file, companions=()), PIXELS)  # [3, F, H, W]
        return pixels.mean(dim=0, keepdim=True).add_(1).div_(2)


def _with_clips(host: Kind[Any]) -> type[MaskKind]:
    """Masks that are pictures, or clips which the host's kind decodes."""

    class ClipMaskKind(MaskKind):
        """Masks of clips."""

        suffixes = MaskKind.suffixes | host.suffixes
        other_suffixes = MaskKind.other_suffixes - host.suffixes
        probing = f"{MaskKind.probing} {host.probing}"

        @classmethod
        def probe(cls, file: Path) -> Probe:
            """What the header of a picture or clip tells."""
            return super().probe(file) if file.suffix.lower() in SUFFIXES else host.probe(file)

        def recipe(self, need: str) -> str:
            """How masks are made of pictures and clips."""
            return f"{super().recipe(need)} {host.recipe(PIXELS)}"

    return ClipMaskKind


def full_mask(source: Source) -> Tensor:
    """The mask of a sample that counts everywhere."""
    width, height = source.crop.size
    return torch.ones((1, height, width) if source.window is None else (1, 1, height, width))


CORE_KINDS: Mapping[str, type[Kind[Any]]] = {"image": ImageKind, "mask": MaskKind, "reference": ReferenceKind, "control": ControlKind}
"""The kinds that need no plugin."""

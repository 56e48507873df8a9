"""The core's own kinds of datasets: pictures, and masks of other datasets' samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch import PIXELS, Crop, Source, Window
from ..config.datasets import ImageTable, MaskTable
from ..family import Family, Modality
from ..kinds import Kind, Piece, Probe, Unfit
from .geometry import MOST_CUT, center_crop, random_crop, rule_of, target_size, too_elongated
from .images import OTHER_SUFFIXES, SUFFIXES, TRANSFORM, load_mask, load_pixels, probe

MASK = "mask"
"""The role of masks, and the field that they become."""


class ImageKind(Kind[ImageTable]):
    """Pictures, each one sample."""

    table_type = ImageTable
    suffixes = SUFFIXES
    other_suffixes = OTHER_SUFFIXES
    probing = "image-1"
    modalities = frozenset({Modality.IMAGE, Modality.VIDEO})

    def __init__(self, table: ImageTable, family: Family) -> None:
        super().__init__(table, family)
        self.rule = rule_of(table, family)

    @classmethod
    def probe(cls, file: Path) -> Probe:
        """The upright size."""
        width, height = probe(file)
        return Probe(width, height)

    def pieces(self, probe: Probe) -> tuple[Piece, ...]:
        """The whole picture."""
        target = target_size(probe.size, self.rule)
        if too_elongated(target):
            raise Unfit("sized", f"too elongated: less than 1/{MOST_CUT} would be left", f"{probe.width}x{probe.height}")
        return (Piece(target),)

    @property
    def draws(self) -> bool:
        """Whether crops are drawn."""
        return self.table.crop == "random"

    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        """The crop."""
        return (center_crop(piece.target) if generator is None else random_crop(piece.target, generator)), None

    def recipe(self, need: str) -> str:
        """How pixels are made of a picture."""
        return TRANSFORM if need == PIXELS else super().recipe(need)

    def load(self, source: Source, need: str) -> Tensor:
        """Pixels [3, H, W] in [-1, 1]."""
        return load_pixels(source) if need == PIXELS else super().load(source, need)


class MaskKind(Kind[MaskTable]):
    """Masks of another dataset's samples: pictures, or for clips of its kind also clips."""

    table_type = MaskTable
    suffixes = SUFFIXES
    other_suffixes = OTHER_SUFFIXES
    probing = "image-1"
    modalities = frozenset()
    role = MASK

    @classmethod
    def probe(cls, file: Path) -> Probe:
        """The upright size."""
        return ImageKind.probe(file)

    def pieces(self, probe: Probe) -> tuple[Piece, ...]:
        """A mask is no sample of its own."""
        raise Unfit("sized", "a mask belongs to a sample of another dataset")

    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        """A mask has the part of its sample."""
        raise NotImplementedError("a mask has the part of its sample")

    def recipe(self, need: str) -> str:
        """How masks are made."""
        return f"mask-1 {TRANSFORM}" if need == MASK else super().recipe(need)

    def companion(self, source: Source, file: Path | None, host: Kind[Any]) -> Tensor:
        """How much each place of a sample counts, in [0, 1]: [1, H, W], of a clip [1, F, H, W] or [1, 1, H, W] for all frames.

        Grey values; in colours their mean. A sample without a mask counts in full.
        """
        if file is None:
            return full_mask(source)
        if file.suffix.lower() in SUFFIXES:
            mask = load_mask(file, source.crop)  # [1, H, W]
            return mask if source.window is None else mask.unsqueeze(1)
        pixels = host.load(replace(source, file=file, companions=()), PIXELS)  # [3, F, H, W]
        return pixels.mean(dim=0, keepdim=True).add_(1).div_(2)


def full_mask(source: Source) -> Tensor:
    """The mask of a sample that counts everywhere."""
    width, height = source.crop.size
    return torch.ones((1, height, width) if source.window is None else (1, 1, height, width))


CORE_KINDS: Mapping[str, type[Kind[Any]]] = {"image": ImageKind, "mask": MaskKind}
"""The kinds that need no plugin."""

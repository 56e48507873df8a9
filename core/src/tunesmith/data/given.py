"""The core's kinds of what is given to the model beside a caption: reference pictures, and clips that guide."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from ..batch import PIXELS, Crop, Source, Window
from ..config.datasets import ControlTable, DatasetTable, ReferenceTable
from ..kinds import Kind, Piece, Probe, Unfit
from .geometry import center_crop, covering
from .images import OTHER_SUFFIXES, SUFFIXES, TRANSFORM, load_pixels, probe

REFERENCE, CONTROL = "reference", "control"
"""The roles of what is given, and the inputs that it becomes."""

D = TypeVar("D", bound=DatasetTable)


class GivenKind(Kind[D]):
    """Files that are no samples of their own, and are cut as their samples are."""

    modalities = frozenset()

    def pieces(self, probe: Probe, name: str) -> tuple[Piece, ...]:
        """Such a file is no sample of its own."""
        raise Unfit("sized", f"a {self.role} belongs to a sample of another dataset")

    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        """It has the part of its sample."""
        raise NotImplementedError(f"a {self.role} has the part of its sample")

    @abstractmethod
    def companion(self, source: Source, file: Path | None, host: Kind[Any]) -> Tensor:
        """Pixels in [-1, 1] of the sample's own size."""


class ReferenceKind(GivenKind[ReferenceTable]):
    """Reference pictures of another dataset's samples."""

    table_type = ReferenceTable
    suffixes = SUFFIXES
    other_suffixes = OTHER_SUFFIXES
    probing = "image-1"
    role = REFERENCE
    fitting = "cut from the middle"

    @classmethod
    def probe(cls, file: Path) -> Probe:
        """The upright size."""
        return Probe(*probe(file))

    def recipe(self, need: str) -> str:
        """How they are made: resized until they just cover the sample's size, then cut to it."""
        return f"reference-1 {TRANSFORM}" if need == REFERENCE else super().recipe(need)

    def companion(self, source: Source, file: Path | None, host: Kind[Any]) -> Tensor:
        """The picture, or the sample's own first frame, [3, H, W] in [-1, 1]."""
        if file is None:
            pixels = host.load(replace(source, companions=()), PIXELS)
            return pixels if source.window is None else pixels[:, 0].clone()
        crop = center_crop(covering(probe(file), source.crop.size))
        return load_pixels(replace(source, file=file, crop=crop, window=None, companions=()))


class ControlKind(GivenKind[ControlTable]):
    """Clips that guide another dataset's clips: files of the endings that its kind reads."""

    table_type = ControlTable
    suffixes = frozenset()
    probing = "control-1"
    role = CONTROL

    def serving(self, host: Kind[Any]) -> ControlKind:
        """The same files as the clips themselves."""
        return _as_clips(host)(self.table, self.family)

    @classmethod
    def probe(cls, file: Path) -> Probe:
        """Headers are read by the kind of the clips."""
        raise NotImplementedError("a control clip is read by the kind of the clips that it guides")

    def recipe(self, need: str) -> str:
        """How they are made."""
        return "control-1" if need == CONTROL else super().recipe(need)

    def companion(self, source: Source, file: Path | None, host: Kind[Any]) -> Tensor:
        """The same window of the clip that guides, [3, F, H, W] in [-1, 1]."""
        if file is None:
            raise ValueError(f"{source} came without its control clip")
        return host.load(replace(source, file=file, companions=()), PIXELS)


def _as_clips(host: Kind[Any]) -> type[ControlKind]:
    """Control clips that the host's kind decodes."""

    class HostedControlKind(ControlKind):
        """Control clips of a kind."""

        suffixes = host.suffixes
        other_suffixes = host.other_suffixes
        probing = f"{ControlKind.probing} {host.probing}"

        @classmethod
        def probe(cls, file: Path) -> Probe:
            """What the header tells the host's kind."""
            return host.probe(file)

        def recipe(self, need: str) -> str:
            """How they are made of clips."""
            return f"{super().recipe(need)} {host.recipe(PIXELS)}" if need == CONTROL else super().recipe(need)

    return HostedControlKind

"""Clips for tests that need no video: a file says in JSON how large and long it is, and its frames go from black to white."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core.tests.data.support import Facts
from tunesmith import (
    Crop,
    Kind,
    KindPlugin,
    Modality,
    Piece,
    PixelTable,
    Probe,
    Settings,
    Source,
    Stage,
    Target,
    Unfit,
    Unreadable,
    Window,
)


class ClipFacts(Facts):
    """A family of clips; its latents have a frame for every four after the first. A caption has a token for each word."""

    name = "clipfacts"
    modality = Modality.VIDEO
    caption_tokens = 5

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return 3, (frames - 1) // 4 + 1, height // 8, width // 8

    def count_tokens(self, captions: Any) -> list[int]:
        return [len(caption.split()) for caption in captions]


class ClipTable(PixelTable):
    kind: Literal["clips"] = "clips"
    """Clips of tests."""
    fps: float = 15.0
    """Frames a second."""
    num_frames: int = 9
    """Frames of a sample."""


class ClipKind(Kind[ClipTable]):
    table_type = ClipTable
    suffixes = frozenset({".clip"})
    probing = "clips-1"
    modalities = frozenset({Modality.VIDEO})

    @classmethod
    def probe(cls, file: Path) -> Probe:
        return Probe(**json.loads(file.read_text()))

    def pieces(self, probe: Probe, name: str) -> tuple[Piece, ...]:
        if probe.seconds * self.table.fps < self.table.num_frames:
            raise Unfit("timed", f"shorter than {self.table.num_frames} frames at {self.table.fps:g} fps", f"{probe.seconds:g} s")
        return (Piece(Target(probe.size, probe.size, 1.0), self.table.num_frames, self.table.fps),)

    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        return Crop(piece.target.resize, piece.target.size, (0, 0)), Window(piece.start, piece.frames, piece.fps)

    def load(self, source: Source, need: str) -> Tensor:
        if "damaged" in source.file.name:
            raise Unreadable(source.file, "damaged beyond frame 3")
        assert source.window is not None
        width, height = source.crop.size
        shades = torch.linspace(-1, 1, source.window.frames)
        return shades[None, :, None, None].expand(3, -1, height, width)


def clip(file: Path, seconds: float, fps: float = 60.0, size: tuple[int, int] = (32, 32)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    told = {"width": size[0], "height": size[1], "frames": round(seconds * fps), "fps": fps, "seconds": seconds}
    file.write_text(json.dumps(told))
    return file


def clip_table(folder: Path, **settings: Any) -> ClipTable:
    return ClipTable(path=str(folder), **{"captions": "filename", **settings})


class ClipSettings(Settings):
    """None."""


class ClipPlugin(KindPlugin[ClipSettings]):
    """Brings clips for tests."""

    stage = Stage.LOAD
    kind = ClipKind

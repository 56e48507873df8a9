"""What the tests of the data share: pictures in folders, a family of facts only, and a run whose encoder counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tunesmith import Batch, Family, FamilyDefaults, Field, Modality, Ragged, TokenGrid
from tunesmith.config.datasets import ImageTable
from tunesmith.config.tables import RunTable
from tunesmith.data.dataset import Dataset
from tunesmith.data.hashing import FileHashes
from tunesmith.data.order import Order
from tunesmith.data.scan import scan


class Facts(Family):
    """A family of 32 x 32 pictures whose sides are multiples of 16."""

    name = "facts"
    modality = Modality.IMAGE
    alignment = 16
    adapter_targets = ()
    variants = {}  # noqa: RUF012
    defaults = FamilyDefaults(size=(32, 32), frames=1, fps=1, guidance=1, sampling_steps=1, aligned_block=0)
    refuses = {}  # noqa: RUF012
    noise_shift = None
    num_blocks, token_width = 1, 1

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return 3, height // 8, width // 8

    def token_grid(self, frames: int, height: int, width: int) -> TokenGrid:
        return TokenGrid(1, height // 8, width // 8)

    def on_meta(self) -> torch.nn.Module:
        return torch.nn.Linear(1, 1, device="meta")

    @classmethod
    def tiny(cls, folder: Path, seed: int = 0) -> Path:
        raise NotImplementedError


def table(folder: Path, **settings: Any) -> ImageTable:
    return ImageTable(path=str(folder), **{"captions": "filename", **settings})


def run_table(batch_size: int = 2) -> RunTable:
    return RunTable(steps=1, batch_size=batch_size)


def scanned(folder: Path, batch_size: int = 2, **settings: Any) -> Dataset:
    return scan(table(folder, **settings), Facts(), run_table(batch_size))


def ordered(folder: Path, batch_size: int = 2, cached: bool = True, seed: int = 0, **settings: Any) -> Order:
    return Order([scanned(folder, batch_size, **settings)], seed, cached=cached)


def picture(file: Path, size: tuple[int, int] = (32, 32), seed: int = 0) -> Path:
    """A smooth picture that differs with the seed."""
    generator = np.random.default_rng(seed)
    corners = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR).save(file)
    return file


def pictures(folder: Path, count: int, size: tuple[int, int] = (32, 32), prefix: str = "") -> Path:
    for number in range(count):
        picture(folder / f"{prefix}{number:02}.png", size, seed=number)
    return folder


FIELDS = (
    Field("latents", "pool-1", per_sample=True),
    Field("edges", "edge-1", per_sample=True),
    Field("prompt", "letters-1", per_sample=False, ragged=True),
    Field("length", "letters-1", per_sample=False),
)


class CountingRun:
    """As much of a run as the data need; its encoder is arithmetic, and counts for each field what it was asked for."""

    def __init__(self, folder: Path, batch_size: int = 2) -> None:
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(run=run_table(batch_size))
        self.file_hashes = FileHashes(folder / "files.sqlite")
        self.hooks = self
        self.encoded: Counter[str] = Counter()
        self.batches: list[Batch] = []
        self.progress = Quiet()
        self.released = 0

    def release_encoders(self) -> None:
        self.released += 1

    def encode_batch(self, run: Any, batch: Batch) -> Batch:
        assert not torch.is_grad_enabled()
        self.batches.append(batch)
        for key in batch.wanted:
            self.encoded[key] += len(batch)
        if batch.pixels is not None:
            means = batch.pixels.mean(dim=(2, 3))  # [B, 3]
            made: dict[str, Tensor] = {"latents": means, "edges": batch.pixels[:, :, 0, 0].to(torch.bfloat16)}
            batch.fields.update({key: made[key] for key in made if batch.wants(key)})
        if batch.wants("prompt"):
            batch.fields["prompt"] = Ragged([torch.tensor([[float(ord(letter))] for letter in c.text + "."]) for c in batch.captions])
        if batch.wants("length"):
            batch.fields["length"] = torch.tensor([[len(caption.text)] for caption in batch.captions])
        return batch


class Quiet:
    """Progress that remembers how much was announced and done."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Any]:
        self.stages[title] = [total, 0]

        def advance(count: int) -> None:
            self.stages[title][1] += count

        yield SimpleNamespace(advance=advance)

"""What the runs of the matrix stand on, made once for each family: a twin, real files with masks, an encoder, and one cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from tests.house import feature_packages
from tests.runs.filming import moving, write_film
from tunesmith import FamilyPlugin, Modality
from tunesmith.discovery import load_class

FAMILIES = [name for package in feature_packages() if package.folder.parent.name == "models" for name in package.entry_points]
EDGE, NUM_FRAMES, NUM_SAMPLES = 64, 9, 4
PATCH, SEEN = 14, 56
"""Pixels along an edge of a patch of the encoder, and of all that it sees."""


@dataclass(frozen=True)
class Stage:
    """One family's checkpoint and data, and where its runs leave what they make; all of them share the cache."""

    family: str
    folder: Path
    modality: Modality

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def config(self, plugins: str) -> str:
        """Three steps of two samples each, every loss recorded; `plugins` are the tables of the plugins."""
        clips = f'kind = "video"\nnum_frames = {NUM_FRAMES}\nresolution_type = "pixel"' if self.modality is Modality.VIDEO else ""
        return f"""
[run]
steps = 3
batch_size = 2
precision = "no"
device = "cpu"
log_every = 1
output = {str(self.folder / "runs")!r}
cache_dir = {str(self.folder / "cache")!r}

[model]
family = {self.family!r}
path = {str(self.checkpoint)!r}

[optimizer]
lr = 1e-3
weight_decay = 0.0

[checkpoints]
every = 1

[[datasets]]
name = "samples"
path = {str(self.folder / "samples")!r}
resolution = {EDGE}
caption_dropout = 0.3
{clips}

[[datasets]]
kind = "mask"
of = "samples"
path = {str(self.folder / "masks")!r}

{plugins}
"""


def build(family: str, folder: Path) -> Stage:
    """Write the twin and the files of a family below a folder."""
    kind = load_class(family)
    assert issubclass(kind, FamilyPlugin)
    stage = Stage(family, folder, kind.family_type.modality)
    kind.family_type.tiny(stage.checkpoint)
    for name in ("samples", "masks"):
        (folder / name).mkdir()
    for number in range(NUM_SAMPLES):
        (folder / "samples" / f"{number}.txt").write_text(f"squares, {number}\n")
        frames = moving(EDGE, EDGE, NUM_FRAMES, seed=number)
        mask = Image.new("L", (EDGE, EDGE))
        mask.paste(255, (0, 0, EDGE // 2, EDGE // 2))
        mask.save(folder / "masks" / f"{number}.png")
        if stage.modality is Modality.IMAGE:
            Image.fromarray(frames[0]).save(folder / "samples" / f"{number}.png")
        else:
            write_film(folder / "samples" / f"{number}.mkv", frames, 200 + 100 * number)
    return stage


def write_encoder(folder: Path) -> Path:
    """A random DINOv2 of the real class."""
    generator = np.random.default_rng(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SEEN, patch_size=PATCH, mlp_ratio=2)
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        parameter.data.copy_(parameter.new_tensor(generator.normal(0, 0.1, parameter.shape)))
    model.save_pretrained(folder)
    return folder

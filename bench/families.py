"""Families at work on wide random twins of their checkpoints: runs that are never begun, samples, and micro-batches of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tunesmith import AUDIO, HISTORY, PIXELS, Batch, Caption, Crop, Family, FamilyPlugin, Modality, Part, Run, Source, Step, Window
from tunesmith.config import load_config
from tunesmith.data.hashing import FileHashes
from tunesmith.discovery import load_class
from tunesmith.encoding.encode import encode
from tunesmith.engine import Engine
from tunesmith.objective import mix
from tunesmith.progress import Progress
from tunesmith.rundir import RunDirectory
from tunesmith.session import assemble


def make_checkpoint(family: str, folder: Path, changes: Mapping[str, Any]) -> Path:
    """The family's twin with changes to its transformer, whose weights are random."""
    kind = load_class(family)
    assert issubclass(kind, FamilyPlugin)
    kind.family_type.tiny(folder)
    model_type = type(make_run(family, folder).load(Part.DENOISER).denoiser)
    config = {**model_type.load_config(folder / "transformer"), **changes}
    for file in (folder / "transformer").iterdir():
        file.unlink()
    torch.manual_seed(0)
    model_type.from_config(config).save_pretrained(folder / "transformer")
    return folder


def make_run(family: str, checkpoint: Path, tables: str = "") -> Run:
    """A run that has loaded nothing, and is never begun, with further tables in its config."""
    file = checkpoint.with_name(f"{family}.toml")
    file.write_text(
        f"[run]\nsteps = 1\nprecision = 'no'\ndevice = 'cpu'\n[model]\nfamily = {family!r}\npath = {str(checkpoint)!r}\n"
        f"[[datasets]]\npath = 'none'\n{tables}"
    )
    config = load_config(file)
    cast = assemble(config)
    hashes = FileHashes(checkpoint.with_name("hashes.sqlite"))
    return Run(config, cast.family, cast.hooks, Engine(config.run), RunDirectory(checkpoint.with_name("run")), hashes, Progress("quiet"))


def sides(family: Family, along: int, frames: int, share: float = 1.0) -> tuple[int, int, int]:
    """Frames, height and width in pixels of a sample with so many tokens along an edge, and at least so many latent frames.

    Of its tokens it has this share, by fewer frames where there is such a clip, and otherwise by fewer rows.
    """
    edge = next(n for n in range(family.alignment, 9999, family.alignment) if family.token_grid(1, n, n).width == along)
    if family.modality is Modality.IMAGE:
        return 1, round(edge * share), edge
    lengths = {family.token_grid(n, edge, edge).frames: n for n in range(999, 0, -1) if family.round_frames(n) == n}
    whole = min(known for known in lengths if known >= frames)
    fewer = lengths.get(round(whole * share)) if (whole * share).is_integer() else None
    return (lengths[whole], round(edge * share), edge) if fewer is None else (fewer, edge, edge)


def make_batch(run: Run, frames: int, height: int, width: int) -> Batch:
    """One sample of random pixels and sound, encoded by the family."""
    family, generator = run.family, torch.Generator().manual_seed(0)
    window = Window(9.0, frames, family.defaults.fps) if frames > 1 else None
    caption = Caption("a red circle")
    source = Source("none", Path("none"), caption, Crop((width, height), (width, height), (0, 0)), window)
    fields = [field for plugin in run.plugins for field in plugin.fields(run)]
    shapes: dict[str, tuple[int, ...]] = {PIXELS: (3, height, width) if frames == 1 else (3, frames, height, width)}
    if family.sound is not None:
        shapes[AUDIO] = (family.sound.channels, round(frames / family.defaults.fps * family.sound.sample_rate))
    if family.history:
        shapes[HISTORY] = (3, family.history, height, width)
    needed = {need for field in fields if field.per_sample for need in field.needs}
    inputs = {need: torch.rand((1, *shape), generator=generator) for need, shape in shapes.items() if need in needed}
    return encode(run, Batch((source,), (caption,), inputs, wanted=frozenset(field.key for field in fields)))


def make_step(batch: Batch, position: int = 0, sigma: float = 0.6) -> Step:
    """A micro-batch as the trainer makes it."""
    latents, level = batch.tensor("latents"), torch.full((len(batch),), sigma)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(position))
    return Step(position, 0, position, "train", batch, level, noise, *mix(latents, noise, level))

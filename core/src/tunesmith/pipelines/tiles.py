"""How an autoencoder takes less memory: large samples in tiles, batches one sample at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .family import PipelineFamily

_SIZES = ("tile_sample_min_height", "tile_sample_min_width")
_STRIDES = ("tile_sample_stride_height", "tile_sample_stride_width")


def refusals(family: PipelineFamily[Any]) -> Iterator[tuple[str, str]]:
    """What `[model]` asks of the autoencoder that its class does not have: the key, and a sentence."""
    settings, kind = family.settings, family.encoder_types["vae"]
    if not settings.vae_tiling and not settings.vae_slicing:
        return
    with torch.device("meta"):
        outline = kind.from_config(dict(family.configs["vae"]))
    if settings.vae_slicing and not (hasattr(outline, "enable_slicing") and _works(outline.enable_slicing)):
        yield "vae_slicing", f"vae_slicing = true: {kind.__name__} has no slices; take it out"
    if settings.vae_tiling and not (hasattr(outline, "enable_tiling") and _works(outline.enable_tiling)):
        yield "vae_tiling", f"vae_tiling = true: {kind.__name__} has no tiles; take it out"
    elif settings.vae_tile_size is not None:
        sentence = _refused_size(outline, settings.vae_tile_size, family.scale)
        if sentence is not None:
            yield "vae_tile_size", f"vae_tile_size = {settings.vae_tile_size}: {sentence}"


def save_memory(autoencoder: Any, family: PipelineFamily[Any]) -> None:
    """Switch on what `[model]` asks for; tiles of another size overlap by the same share as the class's own, or by a little more."""
    settings, scale = family.settings, family.scale
    if settings.vae_slicing:
        autoencoder.enable_slicing()
    if settings.vae_tiling and settings.vae_tile_size is None:
        autoencoder.enable_tiling()
    elif settings.vae_tiling:
        stride = settings.vae_tile_size * autoencoder.tile_sample_stride_height // autoencoder.tile_sample_min_height
        autoencoder.enable_tiling(**dict.fromkeys(_SIZES, settings.vae_tile_size), **dict.fromkeys(_STRIDES, stride // scale * scale))


def _works(enable: Callable[[], None]) -> bool:
    """Whether an autoencoder can be switched so: diffusers gives the method to all classes, and in some it raises."""
    try:
        enable()
    except NotImplementedError:
        return False
    return True


def _refused_size(outline: Any, size: int, scale: int) -> str | None:
    """Why tiles cannot have this size, or None."""
    if not inspect.signature(outline.enable_tiling).parameters.keys() >= {*_SIZES, *_STRIDES}:
        return f"tiles of {type(outline).__name__} have one size alone; take it out"
    if size % scale or size < 2 * scale:
        return f"tiles of this autoencoder are multiples of {scale}, from {2 * scale} on; use {max(round(size / scale), 2) * scale}"
    return None

"""What makes diffusers know the classes of this package, as repositories that name them under `diffusers` need."""

from __future__ import annotations

import diffusers

from .pipeline import WanSpeechToVideoPipeline
from .transformer import WanS2VTransformer3DModel


def register() -> None:
    """Put the classes on the module `diffusers`, where `DiffusionPipeline.from_pretrained` looks for them; once more does no harm."""
    diffusers.WanS2VTransformer3DModel = WanS2VTransformer3DModel
    diffusers.WanSpeechToVideoPipeline = WanSpeechToVideoPipeline

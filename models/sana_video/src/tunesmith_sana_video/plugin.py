"""The Sana Video plugin."""

from __future__ import annotations

import torch
from torch import nn

from tunesmith import Component, PipelinePlugin

from .family import SanaVideoFamily, SanaVideoSettings
from .model import SanaVideoModel
from .weights import load_transformer


class SanaVideo(PipelinePlugin[SanaVideoSettings]):
    """Fine-tune SANA-Video: text to video, and text with a first frame to video."""

    family_type = SanaVideoFamily
    model_type = SanaVideoModel

    def load_denoiser(self, component: Component, dtype: torch.dtype) -> nn.Module:
        """The transformer, whichever shape its last modulation table is stored in."""
        shapes = {name: tuple(value.shape) for name, value in self.family().on_meta().state_dict().items()}
        transformer: nn.Module = load_transformer(self.family().denoiser_type, component, dtype, shapes)
        return transformer

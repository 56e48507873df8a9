"""Clips from a given first frame."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SanaImageToVideoPipeline
from torch import Tensor


class FirstFramePipeline(SanaImageToVideoPipeline):  # type: ignore[misc]
    """diffusers' pipeline, whose autoencoder keeps its own precision under autocast."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Tensor:
        """Noise with the latents of the first frame in place."""
        with torch.autocast(self._execution_device.type, enabled=False):
            latents: Tensor = super().prepare_latents(*args, **kwargs)
        return latents

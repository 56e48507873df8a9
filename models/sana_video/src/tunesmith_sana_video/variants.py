"""The published SANA-Video checkpoints: their short names, and what their configurations say, known by heart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

VariantName: TypeAlias = Literal["2b-480p"]

VARIANTS: Mapping[str, str] = {"2b-480p": "Efficient-Large-Model/SANA-Video_2B_480p_diffusers"}
"""Short name to Hub id: parameters and the height in pixels that the checkpoint was trained at."""


def published(name: str) -> dict[str, dict[str, Any]]:
    """The configurations of a published checkpoint by folder, where they differ from their classes' defaults.

    Source: scripts/convert_sana_video_to_diffusers.py of diffusers, which wrote these checkpoints.
    """
    scheduler = {
        "_class_name": "DPMSolverMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 8.0,
    }
    return {"transformer": {"mlp_ratio": 3.0, "sample_size": 30}, "vae": {}, "scheduler": scheduler}

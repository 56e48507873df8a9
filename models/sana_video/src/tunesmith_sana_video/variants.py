"""The published SANA-Video checkpoints: their short names, and what their configurations say, known by heart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

VariantName: TypeAlias = Literal["2b-480p"]

VARIANTS: Mapping[str, str] = {"2b-480p": "Efficient-Large-Model/SANA-Video_2B_480p_diffusers"}
"""Short name to Hub id: parameters and the height in pixels that the checkpoint was trained at."""

_GEMMA_2_2B = {
    "model_type": "gemma2",
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}


def published(name: str) -> dict[str, dict[str, Any]]:
    """The configurations of a published checkpoint by folder, where they differ from their classes' defaults.

    Source: scripts/convert_sana_video_to_diffusers.py of diffusers, which wrote these checkpoints; of the text encoder
    google/gemma-2-2b-it.
    """
    scheduler = {
        "_class_name": "DPMSolverMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 8.0,
    }
    transformer = {"mlp_ratio": 3.0, "sample_size": 30}
    return {"transformer": transformer, "vae": {}, "scheduler": scheduler, "text_encoder": _GEMMA_2_2B}

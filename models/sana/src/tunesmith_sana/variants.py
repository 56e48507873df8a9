"""The published Sana checkpoints: their short names, and what their configurations say, known by heart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

VariantName: TypeAlias = Literal[
    "600m-512",
    "600m-1024",
    "1.6b-512",
    "1.6b-512-multilingual",
    "1.6b-1024",
    "1.6b-1024-bf16",
    "1.6b-1024-multilingual",
    "1.6b-2048",
    "1.6b-4096",
    "1.5-1.6b-1024",
    "1.5-4.8b-1024",
]

VARIANTS: Mapping[str, str] = {
    "600m-512": "Efficient-Large-Model/Sana_600M_512px_diffusers",
    "600m-1024": "Efficient-Large-Model/Sana_600M_1024px_diffusers",
    "1.6b-512": "Efficient-Large-Model/Sana_1600M_512px_diffusers",
    "1.6b-512-multilingual": "Efficient-Large-Model/Sana_1600M_512px_MultiLing_diffusers",
    "1.6b-1024": "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
    "1.6b-1024-bf16": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
    "1.6b-1024-multilingual": "Efficient-Large-Model/Sana_1600M_1024px_MultiLing_diffusers",
    "1.6b-2048": "Efficient-Large-Model/Sana_1600M_2Kpx_BF16_diffusers",
    "1.6b-4096": "Efficient-Large-Model/Sana_1600M_4Kpx_BF16_diffusers",
    "1.5-1.6b-1024": "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
    "1.5-4.8b-1024": "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
}
"""Short name to Hub id: parameters and the edge in pixels that the checkpoint was trained at."""

_PIXELS_PER_LATENT = 32
_SMALL = {
    "num_layers": 28,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
_INTERPOLATION = {"2048": 1.0, "4096": 2.0}
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

    Source: scripts/convert_sana_to_diffusers.py of diffusers, which wrote these checkpoints; of the text encoder google/gemma-2-2b-it.
    """
    edge = next(part for part in name.split("-") if part in {"512", "1024", "2048", "4096"})
    transformer: dict[str, Any] = {"sample_size": int(edge) // _PIXELS_PER_LATENT}
    if name.startswith("600m"):
        transformer |= _SMALL
    if name.startswith("1.5-"):
        transformer |= {"qk_norm": "rms_norm_across_heads", "num_layers": 60 if "4.8b" in name else 20}
    if edge in _INTERPOLATION:
        transformer["interpolation_scale"] = _INTERPOLATION[edge]
    scheduler = {
        "_class_name": "DPMSolverMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 6.0 if edge == "4096" else 3.0,
    }
    return {"transformer": transformer, "vae": {"scaling_factor": 0.41407}, "scheduler": scheduler, "text_encoder": _GEMMA_2_2B}

"""A random twin of Sana Video: every real class, small enough for a test."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKLWan, DPMSolverMultistepScheduler, SanaVideoPipeline, SanaVideoTransformer3DModel

from tunesmith import gemma_twin, write_twin

_TEXT_WIDTH = 32
_LATENT_CHANNELS = 4
_EDGE = 4  # tokens along an edge: 64 pixels


def write_tiny(folder: Path, seed: int) -> Path:
    """Write the twin as a pipeline folder that `SanaVideoPipeline.from_pretrained` loads, and return the folder."""
    return write_twin(folder, seed, _pipeline)


def _pipeline() -> SanaVideoPipeline:
    tokenizer, text_encoder = gemma_twin(_TEXT_WIDTH)
    return SanaVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=_autoencoder(),
        transformer=_transformer(),
        scheduler=DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=8.0),
    )


def _autoencoder() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=_LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[0.5, 0.75, 1.25, 1.5],
    ).eval()


def _transformer() -> SanaVideoTransformer3DModel:
    return SanaVideoTransformer3DModel(
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=_TEXT_WIDTH,
        mlp_ratio=2.0,
        sample_size=_EDGE,
        rope_max_seq_len=64,
    )

"""A random twin of Sana: every real class, small enough for a test."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

from tunesmith import gemma_twin, write_twin

_TEXT_WIDTH = 32
_LATENT_CHANNELS = 4
_EDGE = 8  # latents along an edge: 64 pixels


def write_tiny(folder: Path, seed: int) -> Path:
    """Write the twin as a pipeline folder that `SanaPipeline.from_pretrained` loads, and return the folder."""
    return write_twin(folder, seed, _pipeline)


def _pipeline() -> SanaPipeline:
    tokenizer, text_encoder = gemma_twin(_TEXT_WIDTH)
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=_autoencoder(),
        transformer=_transformer(),
        scheduler=DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    )


def _autoencoder() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=_LATENT_CHANNELS,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(8, 8, 16, 16),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()


def _transformer() -> SanaTransformer2DModel:
    return SanaTransformer2DModel(
        in_channels=_LATENT_CHANNELS,
        out_channels=_LATENT_CHANNELS,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=_TEXT_WIDTH,
        sample_size=_EDGE,
        patch_size=1,
    )

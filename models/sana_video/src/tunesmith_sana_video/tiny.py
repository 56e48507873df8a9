"""A random twin of Sana Video: every real class, small enough for a test."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, DPMSolverMultistepScheduler, SanaVideoPipeline, SanaVideoTransformer3DModel
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from tunesmith import without_progress_bars

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_TEXT_WIDTH = 32
_LATENT_CHANNELS = 4
_EDGE = 4  # tokens along an edge: 64 pixels


def write_tiny(folder: Path, seed: int) -> Path:
    """Write the twin as a pipeline folder that `SanaVideoPipeline.from_pretrained` loads, and return the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        tokenizer = _tokenizer()
        pipeline = SanaVideoPipeline(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer)),
            vae=_autoencoder(),
            transformer=_transformer(),
            scheduler=DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=8.0),
        )
    with without_progress_bars():
        pipeline.save_pretrained(folder)
    return folder


def _tokenizer() -> GemmaTokenizer:
    """One token for each printable character, and bytes for any other."""
    characters = ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    return GemmaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], add_bos_token=True)


def _text_encoder(num_tokens: int) -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=num_tokens,
        hidden_size=_TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=2048,  # the complex human instruction alone has some 1,400 characters
        pad_token_id=_SPECIAL.index("<pad>"),
        eos_token_id=_SPECIAL.index("<eos>"),
        bos_token_id=_SPECIAL.index("<bos>"),
    )
    model = Gemma2Model(config)
    with torch.no_grad():
        model.embed_tokens.weight.normal_(std=1.0)  # else every prompt looks the same
    return model.eval()


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

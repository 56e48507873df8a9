"""A random twin of Wan S2V: every real class, small enough for a test."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from tunesmith import write_twin

from .pipeline import WanSpeechToVideoPipeline
from .schedules import make_schedule
from .transformer import WanS2VTransformer3DModel

_CHANNELS = 4
_TEXT_WIDTH = 16
_SPEECH_WIDTH = 16
_SPEECH_LAYERS = 3


def write_tiny(folder: Path, seed: int) -> Path:
    """Write the twin as a folder that `WanSpeechToVideoPipeline.from_pretrained` loads, and return the folder."""
    return write_twin(folder, seed, _pipeline)


def _pipeline() -> WanSpeechToVideoPipeline:
    tokenizer = _tokenizer()
    return WanSpeechToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(len(tokenizer)),
        vae=_autoencoder(),
        scheduler=make_schedule(),
        transformer=_transformer(),
        audio_encoder=_speech_encoder(),
        audio_processor=Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
    )


def _tokenizer() -> T5Tokenizer:
    """One token for each printable character."""
    characters = ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((character, -1.0) for character in characters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _text_encoder(num_tokens: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=num_tokens, d_model=_TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return UMT5EncoderModel(config).eval()


def _autoencoder() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=_CHANNELS,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.0, 0.3],
        latents_std=[0.5, 0.6, 0.7, 0.8],
    ).eval()


def _speech_encoder() -> Wav2Vec2ForCTC:
    config = Wav2Vec2Config(
        hidden_size=_SPEECH_WIDTH,
        num_hidden_layers=_SPEECH_LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        vocab_size=8,
    )
    return Wav2Vec2ForCTC(config).eval()


def _transformer() -> WanS2VTransformer3DModel:
    transformer: WanS2VTransformer3DModel = WanS2VTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        pose_dim=_CHANNELS,
        text_dim=_TEXT_WIDTH,
        freq_dim=32,
        audio_dim=_SPEECH_WIDTH,
        audio_inject_layers=(0, 2),
        ffn_dim=48,
        num_layers=4,
        num_weighted_avg_layers=_SPEECH_LAYERS + 1,
    )
    with torch.no_grad():
        for weights in transformer.parameters():
            if not weights.any():  # what a fresh network ignores until it is trained would be ignored by every test, too
                weights.normal_(std=0.1)
    return transformer

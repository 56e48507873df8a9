"""The components of a tiny pipeline, with random weights: what they compute is of no use, and quick."""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from tunesmith_wan_s2v import WanS2VTransformer3DModel, WanSpeechToVideoPipeline
from tunesmith_wan_s2v.schedules import make_schedule

TEXT_WIDTH, SOUND_WIDTH, SOUND_LAYERS = 32, 16, 2


def transformer(seed: int = 0) -> WanS2VTransformer3DModel:
    torch.manual_seed(seed)
    network: WanS2VTransformer3DModel = WanS2VTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        audio_dim=SOUND_WIDTH,
        audio_inject_layers=(0, 1),
        ffn_dim=32,
        num_layers=2,
        num_weighted_avg_layers=SOUND_LAYERS + 1,
    )
    with torch.no_grad():  # else nothing depends on the pose, whose weights begin as zeros
        for weights in network.parameters():
            weights += 0.1 * torch.randn_like(weights)
    network.eval()
    return network


def vae(seed: int = 1) -> AutoencoderKLWan:
    torch.manual_seed(seed)
    return AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]).eval()


def tokenizer() -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    return T5Tokenizer(vocab=[(piece, -float(index)) for index, piece in enumerate(pieces)], extra_ids=0)


def text_encoder(seed: int = 2) -> UMT5EncoderModel:
    torch.manual_seed(seed)
    config = UMT5Config(vocab_size=128, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    return UMT5EncoderModel(config).eval()


def audio_encoder(seed: int = 3) -> Wav2Vec2ForCTC:
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        vocab_size=8,
        hidden_size=SOUND_WIDTH,
        num_hidden_layers=SOUND_LAYERS,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    return Wav2Vec2ForCTC(config).eval()


def pipeline(**changes: Any) -> WanSpeechToVideoPipeline:
    """A whole pipeline; each component may be replaced, also by None."""
    makers = {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": vae,
        "scheduler": make_schedule,
        "transformer": transformer,
        "audio_encoder": audio_encoder,
        "audio_processor": Wav2Vec2FeatureExtractor,
    }
    made = WanSpeechToVideoPipeline(**{name: changes[name] if name in changes else make() for name, make in makers.items()})
    made.set_progress_bar_config(disable=True)
    return made


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sound(seconds: float, seed: int = 0) -> torch.Tensor:
    return random(int(16000 * seconds), seed=seed) * 0.1

"""Facts about one Wan S2V checkpoint, answered from its configurations alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKLWan, SchedulerMixin
from transformers import UMT5EncoderModel, Wav2Vec2ForCTC

from tunesmith import FamilyDefaults, InputError, Modality, PipelineFamily, Sound

from .clips import FRAMES_PER_LATENT, MOTION_FRAMES, latent_frames
from .fields import HISTORY_FRAMES, PACKED_EDGE
from .pipeline import FPS, FRAMES_PER_CLIP, GUIDANCE, STEPS, WanSpeechToVideoPipeline
from .prompts import MAX_TOKENS, clean
from .schedules import SHIFT, make_schedule
from .settings import WanS2VSettings
from .sound import SAMPLE_RATE
from .tiny import write_tiny
from .transformer import WanS2VTransformer3DModel

SCALES = (8, FRAMES_PER_LATENT)
"""Pixels along an edge, and frames, that one latent of Wan 2.1's autoencoder stands for."""
_UMT5_XXL = {
    "model_type": "umt5",
    "vocab_size": 256_384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10_240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""google/umt5-xxl."""
_WAV2VEC2_LARGE = {
    "model_type": "wav2vec2",
    "vocab_size": 33,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
"""jonatasgrosman/wav2vec2-large-xlsr-53-english."""
_COLLAPSES = (
    "the quality of Wan S2V collapses with weights of four bits; keep them in int8, or in bf16 and offload them "
    "([model] allow_unsafe_quantisation = true takes the risk)"
)
_MOVES_ALONG = (
    "the sound moves the whole picture: what lies outside of a mask is not learnt and may come to move along; watch it in validation"
)


class WanS2VFamily(PipelineFamily[WanS2VSettings]):
    """Shapes, names and rules of one Wan S2V checkpoint."""

    name = "wan_s2v"
    modality = Modality.VIDEO
    pipeline_type = WanSpeechToVideoPipeline
    denoiser_type = WanS2VTransformer3DModel
    encoder_types = MappingProxyType({"vae": AutoencoderKLWan, "text_encoder": UMT5EncoderModel, "audio_encoder": Wav2Vec2ForCTC})
    decoder_parts = ("vae", "audio_encoder")
    fits = MappingProxyType(
        {"vae": ("z_dim", "in_channels"), "text_encoder": ("d_model", "text_dim"), "audio_encoder": ("hidden_size", "audio_dim")}
    )
    latents_by_channel = True
    latent_distribution = True
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")
    makes = "clip"
    takes = MappingProxyType({"reference": True, "audio": True, "control": False})
    sound = Sound(SAMPLE_RATE, 1, required=True)
    image_to_video_reason = "the first frame of a clip, or the picture of a reference dataset, is given in any case"
    cautions = MappingProxyType({"masked": _MOVES_ALONG})
    dispatched_attention = "all attention"
    caption_tokens = prompt_length = MAX_TOKENS
    prompt_recipe = str(MAX_TOKENS)

    def __init__(self, settings: WanS2VSettings) -> None:
        super().__init__(settings)
        transformer = self.configs["transformer"]
        self._check_parts()
        scale, frame_scale = SCALES
        self.set_geometry(transformer["in_channels"], scale, tuple(transformer["patch_size"]), frame_scale)
        aligned = min(8, transformer["num_layers"] - 1)
        self.defaults = FamilyDefaults((832, 480), FRAMES_PER_CLIP + 1, FPS, GUIDANCE, STEPS, aligned_block=aligned)
        self.noise_shift = SHIFT
        self.history = HISTORY_FRAMES if settings.motion else 0
        self.refuses_quantisation = {} if settings.allow_unsafe_quantisation else dict.fromkeys(("nf4", "fp4", "int4"), _COLLAPSES)

    @staticmethod
    def published(name: str) -> Mapping[str, Mapping[str, Any]]:
        """What the published checkpoint says beside the defaults of its classes; its encoders are those of these Hub ids."""
        return {"scheduler": {"_class_name": "UniPCMultistepScheduler"}, "text_encoder": _UMT5_XXL, "audio_encoder": _WAV2VEC2_LARGE}

    def scheduler(self, name: str | None = None) -> SchedulerMixin:
        """UniPC at shift 3, or another solver of flows by name."""
        return make_schedule(name, config=self.configs["scheduler"])

    def frame_spans(self, frames: int) -> tuple[range, ...]:
        """Each latent stands for four frames behind the first, which is the reference; that of a picture for the picture."""
        return (range(1),) if frames == 1 else super().frame_spans(frames)[1:]

    def cached_values(self, frames: int, height: int, width: int, before: int = 0) -> int:
        """Latents, the reference, the sound, and with `motion` the latents before a clip where all its frames are there; no poses."""
        latents = self.latent_shape(frames, height, width)
        transformer = self.configs["transformer"]
        sound = transformer["num_weighted_avg_layers"] * transformer["audio_dim"] * latents[1] * FRAMES_PER_LATENT
        has_motion = frames > 1 and self.history and before >= self.history and min(height, width) >= PACKED_EDGE
        single = math.prod(latents) // latents[1]
        values: int = single * (latents[1] + 1 + (latent_frames(MOTION_FRAMES) if has_motion else 0)) + sound
        return values

    def require_size(self, width: int, height: int) -> None:
        """InputError if the pipeline cannot sample at this size, or cannot go on from one clip to the next."""
        super().require_size(width, height)
        if min(width, height) < PACKED_EDGE:
            near = f"{max(width, PACKED_EDGE)}x{max(height, PACKED_EDGE)}"
            raise InputError(
                f"a validation size of {width}x{height} cannot be sampled: {self.name} goes on from the frames before a clip, "
                f"which it packs into tokens of up to {PACKED_EDGE} pixels along an edge; use {near}"
            )

    def as_read(self, caption: str) -> str:
        """The caption as the pipeline cleans it."""
        return clean(caption)

    @classmethod
    def tiny(cls, folder: Path, seed: int = 0) -> Path:
        """Write a random Wan S2V of about 0.15 M parameters, with every part, below `folder`; return it."""
        return write_tiny(folder, seed)

    def _check_parts(self) -> None:
        """Refuse another autoencoder than Wan 2.1's, and a speech model whose layers the transformer cannot weigh."""
        transformer, vae = self.configs["transformer"], self.configs["vae"]
        scales = vae["scale_factor_spatial"], vae["scale_factor_temporal"]
        if scales != SCALES:
            raise InputError(
                f"the autoencoder of {self.place('vae').origin} packs {scales[0]} pixels along an edge and {scales[1]} frames, "
                f"and the family wan_s2v needs that of Wan 2.1, with {SCALES[0]} and {SCALES[1]}"
            )
        if transformer["pose_dim"] != transformer["in_channels"]:
            raise InputError(
                f"the transformer of {self.place('transformer').origin} takes poses of {transformer['pose_dim']} channels; "
                f"they are latents of {transformer['in_channels']}"
            )
        layers = self.configs.get("audio_encoder", {}).get("num_hidden_layers")
        if layers is not None and layers + 1 != transformer["num_weighted_avg_layers"]:
            raise InputError(
                f"the audio encoder of {self.place('audio_encoder').origin} makes {layers + 1} hidden states, "
                f"but the transformer of {self.place('transformer').origin} weighs {transformer['num_weighted_avg_layers']}"
            )

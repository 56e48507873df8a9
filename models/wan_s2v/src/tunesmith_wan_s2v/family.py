"""Facts about one Wan S2V checkpoint, answered from its configurations alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKLWan, SchedulerMixin
from transformers import UMT5EncoderModel, Wav2Vec2ForCTC

from tunesmith import FamilyDefaults, InputError, Modality, PipelineFamily, Sound

from .clips import FRAMES_PER_LATENT
from .fields import HISTORY_FRAMES
from .pipeline import FPS, FRAMES_PER_CLIP, GUIDANCE, STEPS, WanSpeechToVideoPipeline
from .prompts import MAX_TOKENS, clean
from .schedules import SHIFT, make_schedule
from .settings import WanS2VSettings
from .sound import SAMPLE_RATE
from .tiny import write_tiny
from .transformer import WanS2VTransformer3DModel

SCALES = (8, FRAMES_PER_LATENT)
"""Pixels along an edge, and frames, that one latent of Wan 2.1's autoencoder stands for."""
_COLLAPSES = (
    "the quality of Wan S2V collapses with weights of four bits; keep them in int8, or in bf16 and offload them "
    "([model] allow_unsafe_quantisation = true takes the risk)"
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
        self.refuses_quantisation = {} if settings.allow_unsafe_quantisation else {"nf4": _COLLAPSES, "int4": _COLLAPSES}

    @staticmethod
    def published(name: str) -> Mapping[str, Mapping[str, Any]]:
        """What the published checkpoint says beside the defaults of its classes."""
        return {"scheduler": {"_class_name": "UniPCMultistepScheduler"}}

    def scheduler(self, name: str | None = None) -> SchedulerMixin:
        """UniPC at shift 3, or another solver of flows by name."""
        return make_schedule(name, config=self.configs["scheduler"])

    def frame_spans(self, frames: int) -> tuple[range, ...]:
        """Each latent stands for four frames behind the first, which is the reference; that of a picture for the picture."""
        return (range(1),) if frames == 1 else super().frame_spans(frames)[1:]

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

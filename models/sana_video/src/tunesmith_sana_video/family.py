"""Which Sana Video checkpoint is trained, and the facts about it, answered from its configurations alone."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from diffusers import AutoencoderKLWan, SanaVideoPipeline, SanaVideoTransformer3DModel
from pydantic import Field
from transformers import Gemma2Model

from tunesmith import FamilyDefaults, InputError, Modality, PipelineFamily, PipelineSettings

from .attention import keep_full_precision
from .first_frame import FirstFramePipeline
from .refusals import REFUSALS
from .tiny import write_tiny
from .variants import VARIANTS, VariantName, published


class SanaVideoSettings(PipelineSettings):
    """`[model]` with `family = "sana_video"`: which checkpoint, and how its encoders run."""

    checkpoints = VARIANTS
    variant: VariantName | None = None
    """A published checkpoint by its short name; give this or `path`."""
    complex_human_instruction: bool | str = True
    """Put before every positive prompt: true is the pipeline's own text, false nothing, or your text."""
    motion_score: int | None = Field(None, ge=0)
    """How much is to move: put behind every positive prompt that is not empty, as "motion score: 30."; nothing if not given."""


class SanaVideoFamily(PipelineFamily[SanaVideoSettings]):
    """Shapes, names and rules of one Sana Video checkpoint."""

    name, modality = "sana_video", Modality.VIDEO
    makes, dispatched_attention = "clip", "attention to the prompt, not the linear attention between tokens"
    takes = MappingProxyType({"reference": False})
    image_to_video = latent_distribution = latents_by_channel = timesteps_by_token = masks_attention = True
    pipeline_type, first_frame_pipeline = SanaVideoPipeline, FirstFramePipeline
    denoiser_type = SanaVideoTransformer3DModel
    encoder_types = MappingProxyType({"vae": AutoencoderKLWan, "text_encoder": Gemma2Model})
    fits = MappingProxyType({"vae": ("z_dim", "in_channels"), "text_encoder": ("hidden_size", "caption_channels")})
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")
    refuses = REFUSALS
    sampling_multiple = 32
    """What `SanaVideoPipeline` demands, whatever the autoencoder."""
    published, prepare = staticmethod(published), staticmethod(keep_full_precision)

    def __init__(self, settings: SanaVideoSettings) -> None:
        super().__init__(settings)
        transformer, vae = self.configs["transformer"], self.configs["vae"]
        if transformer["guidance_embeds"]:
            raise InputError(
                f"{self.place('transformer').origin} is distilled (guidance_embeds); flow matching trains checkpoints that are not"
            )
        self.set_geometry(vae["z_dim"], vae["scale_factor_spatial"], tuple(transformer["patch_size"]), vae["scale_factor_temporal"], 8)
        usual = self.pipeline_default
        height = self.alignment * transformer["sample_size"]
        width = round(height * usual("width") / usual("height") / self.sampling_multiple) * self.sampling_multiple
        guidance, steps, block = usual("guidance_scale"), usual("num_inference_steps"), transformer["num_layers"] // 2
        self.defaults = FamilyDefaults((width, height), usual("frames"), 16.0, guidance, steps, block)
        own, wanted = "\n".join(usual("complex_human_instruction")), settings.complex_human_instruction
        self.instruction = wanted if isinstance(wanted, str) else own if wanted else ""
        self.prompt_length = usual("max_sequence_length")
        # behind an instruction, whose last token is one of the 300, the pipeline cuts off what exceeds 298; otherwise the first is <bos>
        self.caption_tokens = self.prompt_length - 2 if self.instruction else self.prompt_length
        self.prompt_recipe = f"{self.prompt_length} {settings.motion_score} {self.instruction}"

    def as_read(self, caption: str) -> str:
        """The caption with its motion score, as the pipeline cleans it."""
        score = self.settings.motion_score
        return (caption if score is None or not caption.strip() else f"{caption} motion score: {score}.").lower().strip()

    @classmethod
    def tiny(cls, folder: Path, seed: int = 0) -> Path:
        """Write a random Sana Video of about 0.1 M parameters (8x autoencoder, 64 pixels) below `folder`; return it."""
        return write_tiny(folder, seed)

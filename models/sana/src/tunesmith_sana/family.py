"""Which Sana checkpoint is trained, and the facts about it, answered from its configurations alone."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from transformers import Gemma2Model

from tunesmith import FamilyDefaults, InputError, Modality, PipelineFamily, PipelineSettings

from .attention import keep_full_precision
from .tiny import write_tiny
from .variants import VARIANTS, VariantName, published


class SanaSettings(PipelineSettings):
    """`[model]` with `family = "sana"`: which checkpoint, and how its encoders run."""

    checkpoints = VARIANTS
    variant: VariantName | None = None
    """A published checkpoint by its short name; give this or `path`."""
    complex_human_instruction: bool | str = True
    """Put before every positive prompt: true is the pipeline's own text, false nothing, or your text."""


class SanaFamily(PipelineFamily[SanaSettings]):
    """Shapes, names and rules of one Sana checkpoint."""

    name = "sana"
    modality = Modality.IMAGE
    pipeline_type = SanaPipeline
    denoiser_type = SanaTransformer2DModel
    encoder_types = MappingProxyType({"vae": AutoencoderDC, "text_encoder": Gemma2Model})
    fits = MappingProxyType({"vae": ("latent_channels", "in_channels"), "text_encoder": ("hidden_size", "caption_channels")})
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")
    refuses = MappingProxyType({"chunked_feed_forward": "its feed-forward convolves neighbouring tokens; take it out"})
    sampling_multiple = 32
    """What `SanaPipeline` demands, whatever the autoencoder."""
    published, prepare = staticmethod(published), staticmethod(keep_full_precision)

    def __init__(self, settings: SanaSettings) -> None:
        super().__init__(settings)
        transformer = self.configs["transformer"]
        if transformer["guidance_embeds"]:
            raise InputError(
                f"{self.place('transformer').origin} is a distilled Sana-Sprint (guidance_embeds); "
                "flow matching trains Sana and SANA-1.5 checkpoints"
            )
        scale, patch = 2 ** (len(self.configs["vae"]["encoder_block_out_channels"]) - 1), transformer["patch_size"]
        self.set_geometry(transformer["in_channels"], scale, (1, patch, patch))
        edge = scale * transformer["sample_size"]
        guidance, steps = self.pipeline_default("guidance_scale"), self.pipeline_default("num_inference_steps")
        self.defaults = FamilyDefaults((edge, edge), 1, 1.0, guidance, steps, aligned_block=transformer["num_layers"] // 2)
        self.timestep_scale = 1000.0 * transformer["timestep_scale"]
        own = "\n".join(self.pipeline_default("complex_human_instruction"))
        wanted = settings.complex_human_instruction
        self.instruction = wanted if isinstance(wanted, str) else own if wanted else ""
        self.prompt_length = self.pipeline_default("max_sequence_length")
        # behind an instruction, whose last token is one of the 300, the pipeline cuts off what exceeds 298; otherwise the first is <bos>
        self.caption_tokens = self.prompt_length - 2 if wanted else self.prompt_length
        self.prompt_recipe = f"{self.prompt_length} {self.instruction}"

    def as_read(self, caption: str) -> str:
        """The caption as the pipeline cleans it."""
        return caption.lower().strip()

    @classmethod
    def tiny(cls, folder: Path, seed: int = 0) -> Path:
        """Write a random Sana of about 0.1 M parameters (8x autoencoder, 64 pixels) below `folder`; return it."""
        return write_tiny(folder, seed)

"""The `[model]` table of the Sana family, and the checkpoints that it knows by a short name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import model_validator

from tunesmith import ModelSource, Settings

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


class SanaSettings(Settings):
    """`[model]` with `family = "sana"`: which checkpoint, and how its encoders run."""

    path: ModelSource | None = None
    """Local folder or Hub id that `SanaPipeline.from_pretrained` loads; give this or `variant`."""
    variant: VariantName | None = None
    """A published checkpoint by its short name; give this or `path`."""
    revision: str | None = None
    """Branch, tag or commit of the Hub id in `path` or behind `variant`."""
    weights_variant: Literal["fp16", "bf16"] | None = None
    """Take the weight files saved under this suffix where a part has them; training precision is `[run] weights`."""
    vae: ModelSource | None = None
    """Local folder or Hub id of another autoencoder, as a pipeline or by itself."""
    text_encoder: ModelSource | None = None
    """Local folder or Hub id of another Gemma 2 with its tokenizer, as a pipeline or by itself."""
    complex_human_instruction: bool | str = True
    """Put before every positive prompt: true is the pipeline's own text, false nothing, or your text."""
    text_encoder_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the text encoder; auto is bf16 on a GPU and fp32 on the CPU. Gemma 2 overflows in fp16."""
    vae_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the autoencoder."""

    @model_validator(mode="after")
    def _one_source(self) -> SanaSettings:
        if (self.path is None) == (self.variant is None):
            found = "neither" if self.path is None else "both"
            raise ValueError(f"name the checkpoint by either `path` or `variant`; found {found}")
        return self

    @property
    def checkpoint(self) -> str:
        """The local folder or Hub id of the checkpoint."""
        if self.variant is not None:
            return VARIANTS[self.variant]
        assert self.path is not None  # the validator saw to it
        return self.path

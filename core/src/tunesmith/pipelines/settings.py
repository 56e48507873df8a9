"""The `[model]` table that families share whose checkpoints are laid out as diffusers pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from ..paths import ModelSource
from ..plugin import Settings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PipelineSettings(Settings):
    """Which checkpoint is trained, and how its encoders run.

    A family adds settings of its own. One whose checkpoints have short names sets `checkpoints`, and narrows `variant`
    to these names, so that the schema tells them.
    """

    checkpoints: ClassVar[Mapping[str, str]] = {}
    """Short name to Hub id."""
    may_change: ClassVar[frozenset[str]] = frozenset({"vae_tiling", "vae_tile_size", "vae_slicing"})

    path: ModelSource | None = None
    """Local folder or Hub id of a checkpoint that the family's pipeline loads with `from_pretrained`; give this or `variant`."""
    variant: str | None = None
    """A published checkpoint by its short name; give this or `path`."""
    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of the Hub id in `path` or behind `variant`."""
    weights_variant: Literal["fp16", "bf16"] | None = None
    """Take the weight files saved under this suffix where a part has them; training precision is `[run] weights`."""
    vae: ModelSource | None = None
    """Local folder or Hub id of another autoencoder, as a pipeline or by itself."""
    text_encoder: ModelSource | None = None
    """Local folder or Hub id of another text encoder of the same kind with its tokenizer, as a pipeline or by itself."""
    text_encoder_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the text encoder; auto is bf16 on a GPU and fp32 on the CPU. There is no fp16, in which text encoders overflow."""
    vae_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the autoencoder."""
    vae_tiling: bool = False
    """Have the autoencoder take samples that are larger than a tile in tiles that overlap; it changes latents and pixels a little."""
    vae_tile_size: int | None = Field(None, ge=1)
    """Pixels along the edge of a tile, a multiple of what one latent stands for; the autoencoder's own when not given."""
    vae_slicing: bool = False
    """Have the autoencoder take the samples of a batch one by one, which changes nothing but by rounding."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.path is None) == (self.variant is None):
            found = "neither" if self.path is None else "both"
            raise ValueError(f"name the checkpoint by either `path` or `variant`; found {found}")
        if self.variant is not None and self.variant not in self.checkpoints:
            raise ValueError(f"there is no variant {self.variant!r}; known are {', '.join(self.checkpoints) or 'none'}")
        if self.vae_tile_size is not None and not self.vae_tiling:
            raise ValueError("`vae_tile_size` is the size of tiles: write `vae_tiling = true` beside it, or take it out")
        return self

    @property
    def checkpoint(self) -> str:
        """The local folder or Hub id of the checkpoint."""
        return self.path if self.path is not None else self.checkpoints[str(self.variant)]

    def elsewhere(self) -> dict[str, str | None]:
        """For the folders of parts that may come from another checkpoint, where from; None where it is this one."""
        return {"vae": self.vae, "text_encoder": self.text_encoder, "tokenizer": self.text_encoder}

    @property
    def tiles(self) -> str:
        """In what tiles samples are encoded, where latents depend on it."""
        return "" if not self.vae_tiling else " in tiles" if self.vae_tile_size is None else f" in tiles of {self.vae_tile_size}"

    def dtypes(self, device: torch.device) -> dict[str, torch.dtype]:
        """The precision of each encoder, by folder, on a device."""
        auto = "fp32" if device.type == "cpu" else "bf16"
        text = auto if self.text_encoder_dtype == "auto" else self.text_encoder_dtype
        return {"vae": DTYPES[self.vae_dtype], "text_encoder": DTYPES[text]}

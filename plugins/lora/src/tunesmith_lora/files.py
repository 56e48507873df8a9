"""LoRA files as diffusers writes and loads them: prefixed keys, and the adapter's configuration as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunesmith import InputError

PREFIX = "transformer."
"""What diffusers' pipelines call the denoiser in the keys of a LoRA file."""


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds for the denoiser: weights by peft's names, and the configuration if it was written."""

    path: Path
    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @property
    def ranks(self) -> list[int]:
        """The ranks found in the file, ascending."""
        return sorted({weight.shape[0] for name, weight in self.weights.items() if name.endswith("lora_A.weight")})

    @property
    def alpha(self) -> float | None:
        """The alpha that it was trained with, if that was written."""
        alpha = self.config.get("lora_alpha")
        return None if alpha is None else float(alpha)

    @property
    def rank_stabilized(self) -> bool:
        """Whether its update is scaled by alpha / sqrt(rank)."""
        return bool(self.config.get("use_rslora", False))


def write_lora(folder: Path, weights: Mapping[str, Tensor], config: LoraConfig) -> Path:
    """Write `pytorch_lora_weights.safetensors` below `folder` so that `load_lora_weights` restores the function exactly.

    The configuration goes along: without it diffusers takes alpha to be the rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = {PREFIX + key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    path: Path = folder / LORA_WEIGHT_NAME_SAFE
    tensors = {PREFIX + name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(tensors, path, metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(described, indent=2, sort_keys=True)})
    return path


def read_lora(source: Path) -> LoraFile:
    """Read a LoRA file, or the one in a folder; InputError if there is none or it is not for the denoiser."""
    path = source / LORA_WEIGHT_NAME_SAFE if source.is_dir() else source
    if not path.is_file():
        raise InputError(f"lora cannot start from {path}: there is no such file; `init_from` takes a {LORA_WEIGHT_NAME_SAFE} or its folder")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118  a handle, not a dict
            weights = {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise InputError(f"lora cannot start from {path}: it is no safetensors file ({error})") from None
    if not any(name.endswith("lora_A.weight") for name in weights):
        raise InputError(f"lora cannot start from {path}: it has no keys such as {PREFIX}<layer>.lora_A.weight, which diffusers writes")
    config = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    return LoraFile(path, weights, {key.removeprefix(PREFIX): value for key, value in config.items()})

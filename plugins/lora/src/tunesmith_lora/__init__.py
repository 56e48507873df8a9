"""LoRA for Tunesmith: low-rank adapters on any family whose denoiser takes peft adapters."""

from .plugin import Lora, LoraSettings

__all__ = ["Lora", "LoraSettings"]

"""Attention kernels for Tunesmith: flash, sage and the others of diffusers, for training and for validation."""

from .plugin import AttentionBackend, AttentionBackendSettings

__all__ = ["AttentionBackend", "AttentionBackendSettings"]

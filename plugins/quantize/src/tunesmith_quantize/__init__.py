"""Quantisation for Tunesmith: frozen weights and text encoders in four or eight bits."""

from .plugin import Quantize, QuantizeSettings

__all__ = ["Quantize", "QuantizeSettings"]

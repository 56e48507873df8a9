"""The Sana family for Tunesmith: text-to-image by a linear-attention transformer on strongly compressed latents."""

from .family import SanaFamily, SanaSettings
from .model import SanaModel
from .plugin import Sana

__all__ = ["Sana", "SanaFamily", "SanaModel", "SanaSettings"]

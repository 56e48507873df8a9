"""The Sana family for Tunesmith: text-to-image by a linear-attention transformer on strongly compressed latents."""

from .family import SanaFamily
from .model import SanaModel
from .plugin import Sana
from .settings import SanaSettings

__all__ = ["Sana", "SanaFamily", "SanaModel", "SanaSettings"]

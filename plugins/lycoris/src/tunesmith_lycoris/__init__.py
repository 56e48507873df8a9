"""LyCORIS for Tunesmith: LoKr, LoHa, LoCon, (IA)^3, DoRA and whole differences on any family."""

from .plugin import Lycoris
from .settings import LayerSettings, LycorisSettings

__all__ = ["LayerSettings", "Lycoris", "LycorisSettings"]

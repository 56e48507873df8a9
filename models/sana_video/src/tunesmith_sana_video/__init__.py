"""The Sana Video family for Tunesmith: clips from text, or from text and their first frame, by linear attention."""

from .family import SanaVideoFamily, SanaVideoSettings
from .model import SanaVideoModel
from .plugin import SanaVideo

__all__ = ["SanaVideo", "SanaVideoFamily", "SanaVideoModel", "SanaVideoSettings"]

"""TREAD for Tunesmith: some tokens bypass some blocks while training, which saves their cost."""

from .bypass import Routed, bypass
from .plugin import RouteSettings, Tread, TreadSettings
from .selection import choose, importance, num_kept

__all__ = ["RouteSettings", "Routed", "Tread", "TreadSettings", "bypass", "choose", "importance", "num_kept"]

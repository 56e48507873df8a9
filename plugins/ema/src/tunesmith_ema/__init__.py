"""EMA for Tunesmith: a moving average of what is trained, in fp32, to validate with and to save."""

from .plugin import Ema, EmaSettings

__all__ = ["Ema", "EmaSettings"]

"""CREPA for Tunesmith: align hidden states with a vision encoder's features across neighbouring frames."""

from .plugin import Crepa, CrepaSettings

__all__ = ["Crepa", "CrepaSettings"]

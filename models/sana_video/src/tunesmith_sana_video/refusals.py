"""What Sana Video cannot be trained with, and why."""

from __future__ import annotations

from types import MappingProxyType

REFUSALS = MappingProxyType(
    {
        "noise": "it is trained at the noise levels of the checkpoint's own flow schedule; take [noise] out",
        "chunked_feed_forward": "its feed-forward convolves neighbouring tokens and frames; take it out",
    }
)
"""Plugins and tables of the config, each with the reason."""

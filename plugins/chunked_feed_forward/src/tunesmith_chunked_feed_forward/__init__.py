"""Chunked feed-forward for Tunesmith: the widest layers are computed a portion of the tokens at a time."""

from .plugin import ChunkedFeedForward, ChunkedFeedForwardSettings

__all__ = ["ChunkedFeedForward", "ChunkedFeedForwardSettings"]

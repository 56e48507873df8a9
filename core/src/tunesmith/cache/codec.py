"""How a tensor becomes the bytes of a cache entry, and back."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, TypeAlias

import zstandard
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

Compression: TypeAlias = Literal["auto", "zstd", "none"]
WORTH = 0.9
"""auto: the share of its size that an entry may keep at most if it is compressed."""
LEVEL = 3
"""Compression level of zstd: about as fast as a disk."""
_VALUE = "value"


class Codec(IntEnum):
    """What the bytes of an entry are; the numbers stand in the index."""

    PLAIN = 0
    ZSTD = 1


def pack(value: Tensor, compression: Compression) -> tuple[bytes, Codec]:
    """A tensor from any device as safetensors, compressed if asked or if it pays."""
    content = save({_VALUE: value.detach().cpu().contiguous()})
    if compression == "none":
        return content, Codec.PLAIN
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(content)
    if compression == "auto" and len(packed) > WORTH * len(content):
        return content, Codec.PLAIN
    return packed, Codec.ZSTD


def unpack(content: bytes, codec: int) -> Tensor | None:
    """The tensor, bit for bit; None if the bytes are none."""
    try:
        plain = zstandard.ZstdDecompressor().decompress(content) if codec == Codec.ZSTD else content
        return load(plain)[_VALUE]
    except (zstandard.ZstdError, SafetensorError, KeyError):
        return None

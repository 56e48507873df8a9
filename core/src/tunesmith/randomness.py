"""Randomness as a function of position: every draw has its own generator, so no state needs saving."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def position_seed(seed: int, purpose: str, *position: int | str) -> int:
    """A 63-bit seed that depends on the run's seed, what is drawn, and where: step or epoch, sample index, ..."""
    text = "\x1f".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, purpose: str, *position: int | str) -> torch.Generator:
    """A CPU generator for tensors drawn at this position."""
    return torch.Generator().manual_seed(position_seed(seed, purpose, *position))


def numpy_generator(seed: int, purpose: str, *position: int | str) -> np.random.Generator:
    """A generator for numbers, choices and orders drawn at this position (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(key=position_seed(seed, purpose, *position)))

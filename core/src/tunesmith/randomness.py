"""Randomness as a function of position: every draw has its own generator, so no state needs saving."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence


def position_seed(seed: int, purpose: str, *position: int | str) -> int:
    """A 63-bit seed that depends on the run's seed, what is drawn, and where: step or epoch, sample index, ..."""
    text = "\x1f".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, purpose: str, *position: int | str) -> torch.Generator:
    """A CPU generator for tensors drawn at this position."""
    return torch.Generator().manual_seed(position_seed(seed, purpose, *position))


def numpy_generator(seed: int, purpose: str, *position: int | str) -> np.random.Generator:
    """A generator for numbers, choices and orders drawn at this position (Philox, counter-based)."""
    return np.random.Generator(np.random.Philox(_Key(position_seed(seed, purpose, *position))))  # type: ignore[arg-type]


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's own generators of the CPU and of a device, from which dropout and the like draw.

    `torch.manual_seed` does the same for every kind of device there is, which takes as long as a layer of a small model.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


class _Key(ISeedSequence):
    """A key for Philox. Given as `key=` it would be the same, but Philox asks the system for entropy first, which takes longer."""

    def __init__(self, key: int) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        """The key's two words of 64 bits, which is what Philox asks for."""
        return np.array([self.key, 0], dtype=np.uint64)

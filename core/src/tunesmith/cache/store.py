"""What keeps encoded values by key: on disk or in memory, for one process or for several."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from torch import Tensor

from ..batch import Caption, Crop, Field, Window


class Store(ABC):
    """Tensors by key. `damaged` counts entries that were found damaged; each is forgotten, and told to `on_damage`."""

    def __init__(self, on_damage: Callable[[str], None] | None = None) -> None:
        self.damaged = 0
        self.on_damage = on_damage

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def get_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """The tensors that are there, by key, and nobody else's; an entry with wrong bytes is forgotten and counts as absent."""

    @abstractmethod
    def put(self, key: str, value: Tensor, field: str = "") -> None:
        """Store a tensor from any device; nothing happens if the key is there. `field` says what it is."""

    @abstractmethod
    def contains_many(self, keys: Iterable[str]) -> set[str]:
        """Which of the keys are there."""

    @abstractmethod
    def claim_many(self, keys: Iterable[str]) -> set[str]:
        """Take on what is neither there nor claimed, by this store or by one that lives; what is returned must be put or released."""

    @abstractmethod
    def release(self) -> None:
        """Give up what was claimed and not put."""

    def get(self, key: str) -> Tensor | None:
        """The tensor, bit for bit as it was put, or None; see `get_many`."""
        return self.get_many([key]).get(key)

    def put_many(self, values: Mapping[str, Tensor], field: str = "") -> None:
        """Store several tensors of one field."""
        for key, value in values.items():
            self.put(key, value, field)

    def sound_many(self, keys: Iterable[str]) -> set[str]:
        """Which of the keys are there and whole; what is not whole is forgotten."""
        return self.contains_many(keys)

    def others_at(self, keys: Iterable[str]) -> str | None:
        """Who else is at work on some of these keys, in words; None if nobody is."""
        return None

    def use(self, user: str, part: int, keys: Sequence[str]) -> None:  # noqa: B027 - what nothing outlives needs no users
        """Remember that a user, who has any number of parts, uses these keys, in place of what the part was before."""

    def end_use(self, user: str, parts: int) -> None:  # noqa: B027
        """Remember that a user has no more than so many parts."""

    def flush(self) -> None:  # noqa: B027 - and is visible at once
        """Make everything that was put durable and visible to others."""

    @abstractmethod
    def close(self) -> None:
        """Flush, and give everything back."""


class MemoryCache(Store):
    """Tensors by key in the memory of this process, which nobody shares and nothing outlives."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, Tensor] = {}
        self._claimed: set[str] = set()

    def get_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Copies of the tensors that are there, by key."""
        return {key: self._values[key].clone() for key in keys if key in self._values}

    def put(self, key: str, value: Tensor, field: str = "") -> None:
        """Keep a tensor from any device; nothing happens if the key is there."""
        if key not in self._values:
            self._values[key] = value.detach().cpu().clone()
        self._claimed.discard(key)

    def contains_many(self, keys: Iterable[str]) -> set[str]:
        """Which of the keys are there."""
        return {key for key in keys if key in self._values}

    def claim_many(self, keys: Iterable[str]) -> set[str]:
        """What is neither there nor claimed."""
        mine = {key for key in keys if key not in self._values and key not in self._claimed}
        self._claimed |= mine
        return mine

    def release(self) -> None:
        """Give up what was claimed and not put."""
        self._claimed.clear()

    def close(self) -> None:
        """Give the memory back."""
        self._values.clear()


def sample_key(field: Field, recipe: str, file_hash: str, crop: Crop, window: Window | None = None) -> str:
    """The key of a per-sample field: what the encoder is, how its inputs are made, the files' bytes, and which part of them."""
    return _key("sample", field.key, field.fingerprint, recipe, file_hash, repr(crop), repr(window))


def caption_key(field: Field, caption: Caption) -> str:
    """The key of a field of captions: what the encoder is, and the text."""
    return _key("caption", field.key, field.fingerprint, caption.text, str(caption.negative))


def _key(*parts: str) -> str:
    encoded = [part.encode() for part in parts]
    return hashlib.blake2b(b"".join([len(part).to_bytes(8, "little") + part for part in encoded]), digest_size=20).hexdigest()

"""The bytes of tensors that are alive, counted where no allocator tells them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts the storage of each tensor that is made within it, or that it is told of, for as long as it is alive.

    `live` are the bytes at this moment, `peak` the most that there were. What a kernel takes for itself while it runs is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def count(self, values: Any) -> None:
        """Count these tensors, too; of those it knows already, nothing."""
        for storage in storages(values):
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def since_now(self) -> None:
        """Forget the peak: what counts is what comes from here on."""
        self.peak = self.live

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.count(result)
        return result

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of these tensors, each once."""
    return sum({storage._cdata: storage.nbytes() for storage in storages(list(tensors))}.values())


def storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of all tensors among these values, some of them perhaps several times."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and is_traceable_wrapper_subclass(value):  # it has no storage, but the tensors that it is made of do
            names, _ = value.__tensor_flatten__()
            yield from storages([getattr(value, name) for name in names])
        elif isinstance(value, Tensor):
            yield value.untyped_storage()

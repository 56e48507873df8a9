"""The loaded model, described well enough that features never need the name of a family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from .batch import Batch
from .errors import PartMissing
from .family import Family, TokenGrid
from .media import Media, SampleRequest

T = TypeVar("T")

TakeTokens: TypeAlias = Callable[[Any, Tensor], Any]
"""(value, indices [B, K], sorted) -> the value for these tokens only, per sample; a value may be a pair of tensors."""


def take_rows(value: T, indices: Tensor) -> T:
    """Take tokens out of [B, T, ...] or [1, T, ...] along dimension 1: the rule for hidden states and per-token modulation.

    What is the same for every token, [B, 1, ...], stays as it is; of several tensors, as rotary tables are, each is taken from.
    """
    if not isinstance(value, Tensor):
        return cast(T, tuple(take_rows(one, indices) for one in cast(Iterable[Tensor], value)))
    if value.shape[1] == 1:
        return value
    rows = value.expand(indices.shape[0], *value.shape[1:])
    shape = (*indices.shape, *rows.shape[2:])
    return cast(T, rows.gather(1, indices.reshape(*indices.shape, *[1] * (rows.ndim - 2)).expand(shape)))


class GridLayout(Enum):
    """How a convolution of the trunk is given the token grid, as states [B, C, frames, height, width]."""

    IMAGES = "images"
    """[B * frames, C, height, width]"""
    COLUMNS = "columns"
    """[B, C, frames, height * width]"""
    VOLUME = "volume"
    """[B, C, frames, height, width]"""

    def sides(self, grid: TokenGrid) -> tuple[int, ...]:
        """The sides that the convolution is given of a token grid, behind batch and channels."""
        if self is GridLayout.IMAGES:
            return grid.height, grid.width
        return (grid.frames, grid.height * grid.width) if self is GridLayout.COLUMNS else (grid.frames, grid.height, grid.width)


@dataclass(frozen=True)
class GridConvolution:
    """A convolution that mixes tokens which lie beside each other on the grid."""

    module: nn.Module
    layout: GridLayout


@dataclass(frozen=True)
class TrunkModule:
    """One module of the denoiser's trunk: a transformer block, or what the family does between two blocks.

    `hidden` names the parameter of its `forward` that carries the tokens [B, T, D]; the output, or its item `output`
    where that is a tuple, has the same shape. Tokens beyond those of the grid are given conditions and come last; they
    must always be kept. `per_token` says for each other parameter that is indexed by token how a subset of tokens is taken from it.
    `grid` names the integer parameters that give the sides of the token grid; for K tokens the last of them becomes K
    and the others 1, and then each of `convolutions`, which then sees K tokens as [B, C, 1.., K], must be given the full
    grid in its layout: scatter before it, gather after it. `attention` and `feed_forward` are the submodules that features replace,
    observe or recompute.
    """

    name: str
    module: nn.Module
    is_block: bool
    hidden: str = "hidden_states"
    output: int | None = None
    per_token: Mapping[str, TakeTokens] = field(default_factory=dict)
    grid: tuple[str, ...] = ()
    convolutions: tuple[GridConvolution, ...] = ()
    attention: tuple[nn.Module, ...] = ()
    feed_forward: tuple[nn.Module, ...] = ()


class Trainable(nn.Module):
    """Everything that may be trained, as one module: the denoiser and what plugins add beside it."""

    def __init__(self, denoiser: nn.Module, extra: nn.ModuleDict) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.extra = extra

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser."""
        return self.denoiser(*args, **kwargs)


class Model(ABC):
    """One loaded part of a family's model; families subclass it, features use it.

    `encoders` holds what is needed besides the denoiser (autoencoder, text encoder), `extra` the trainable modules
    that plugins add, by plugin name. A plugin that injects an adapter registers in `adapters` how to switch it off.
    `trains_base` says whether the denoiser itself is trained: the core sets it before any plugin sees the model, and it
    is so unless a plugin of stage ADAPT is active. Whoever places the modules on devices sets `placed`.
    Where the core sets `fixed_lengths`, `predict` gives the denoiser prompts that are padded to the most there can be, not to
    the longest of the batch: then every batch of samples of one size has the same shapes, which blocks are compiled for.
    """

    component: str = "transformer"
    """The denoiser's folder in a pipeline."""

    def __init__(self, family: Family, denoiser: nn.Module | None, encoders: Mapping[str, nn.Module]) -> None:
        self.family = family
        self._denoiser = denoiser
        self.encoders = dict(encoders)
        self.extra = nn.ModuleDict()
        self.adapters: dict[str, Callable[[], AbstractContextManager[None]]] = {}
        self.prepared: Callable[..., Any] | None = None
        self.trains_base = False
        self.placed = False
        self.fixed_lengths = False

    @property
    def denoiser(self) -> Any:
        """The network that is trained, with its own attributes; PartMissing where only other parts are loaded."""
        if self._denoiser is None:
            raise PartMissing(f"the denoiser of {self.family.name} is not loaded in this phase")
        return self._denoiser

    def encoder(self, name: str) -> Any:
        """An encoder by name; PartMissing with the names of those that are loaded."""
        if name not in self.encoders:
            loaded = ", ".join(sorted(self.encoders)) or "none"
            raise PartMissing(f"{name} of {self.family.name} is not loaded in this phase; loaded: {loaded}")
        return self.encoders[name]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser through the module that the engine prepared, or directly before that."""
        return (self.prepared or self.denoiser)(*args, **kwargs)

    def modules(self) -> Iterator[nn.Module]:
        """Every loaded module: denoiser, extra, encoders."""
        if self._denoiser is not None:
            yield self._denoiser
        yield self.extra
        yield from self.encoders.values()

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The base model as it was loaded, for the length of the context."""
        with ExitStack() as stack:
            for name in sorted(self.adapters):
                stack.enter_context(self.adapters[name]())
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The denoiser in evaluation mode and without gradients, for predictions within a step that are no part of its loss."""
        was_training = self.denoiser.training
        self.denoiser.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.denoiser.train(was_training)
            torch.clear_autocast_cache()  # which would hand weights that were cast here, without a gradient, to a prediction that needs one

    def release(self) -> None:
        """Drop every loaded module, so that its memory can be used again."""
        self._denoiser, self.encoders, self.extra, self.prepared = None, {}, nn.ModuleDict(), None

    @abstractmethod
    def predict(self, noisy: Tensor, sigma: Tensor, conditions: Batch) -> Tensor:
        """The velocity that the model predicts for noisy latents [B, C, ...] at `sigma` ([B] or broadcasting)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1] of training latents [B, C, ...]."""

    @abstractmethod
    def pipeline(self, denoiser: nn.Module) -> Any:
        """The family's diffusers pipeline around a live denoiser, without text encoders."""

    @abstractmethod
    def sample(self, pipeline: Any, request: SampleRequest) -> Media:
        """Make one picture or clip with such a pipeline."""

    @abstractmethod
    def trunk(self) -> Sequence[TrunkModule]:
        """The denoiser's trunk in the order in which it runs, with what happens between blocks."""

    @abstractmethod
    def token_grid(self, latents: Tensor) -> TokenGrid:
        """The token grid of these latents [B, C, ...]."""

    @property
    def blocks(self) -> list[TrunkModule]:
        """The transformer blocks alone, in order."""
        return [entry for entry in self.trunk() if entry.is_block]

"""The unreduced loss of one micro-batch, to which plugins contribute in any order."""

from __future__ import annotations

from torch import Tensor


class Loss:
    """Elements, weights and named terms; contributions commute, so the order of plugins never changes the sum.

    `elements` is the unreduced loss [B, ...]. The total is the mean over all elements of `elements` times the product
    of the weights (never a mean over weights), plus the sum of the terms, which come scaled.
    """

    def __init__(self, elements: Tensor) -> None:
        self.elements = elements
        self.weights: dict[str, Tensor] = {}
        self.terms: dict[str, Tensor] = {}

    def weigh(self, name: str, weight: Tensor) -> None:
        """Multiply the elements by `weight`, which broadcasts to them; ValueError if it does not or the name was used."""
        if name in self.weights:
            raise ValueError(f"a loss weight named {name!r} was already given; it has {', '.join(sorted(self.weights))}")
        fits = weight.ndim in (0, self.elements.ndim) and all(
            size in (1, whole) for size, whole in zip(weight.shape, self.elements.shape, strict=False)
        )
        if not fits:
            raise ValueError(
                f"loss weight {name!r} has shape {tuple(weight.shape)}, which does not broadcast to the elements "
                f"{tuple(self.elements.shape)}; give it as many dimensions, each of that size or 1"
            )
        self.weights[name] = weight

    def add(self, name: str, term: Tensor) -> None:
        """Add a scalar term, already scaled; ValueError if the name was used or the term is no scalar."""
        if name in self.terms:
            raise ValueError(f"a loss term named {name!r} was already added; it has {', '.join(sorted(self.terms))}")
        if term.ndim:
            raise ValueError(f"loss term {name!r} has shape {tuple(term.shape)}; reduce it to a scalar first")
        self.terms[name] = term

    @property
    def total(self) -> Tensor:
        """The scalar to minimise; weights and terms are folded in the order of their names."""
        weighed = self.elements
        for name in sorted(self.weights):
            weighed = weighed * self.weights[name]
        total = weighed.mean()
        for name in sorted(self.terms):
            total = total + self.terms[name]
        return total

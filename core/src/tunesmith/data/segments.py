"""How the batches of a run are shared among its datasets, which may come and go: arithmetic of positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from ..randomness import numpy_generator

Numbers = NDArray[np.int64]
ROUND = 1000
"""Batches over which weights come true at least; a round has more where an epoch has more."""


@dataclass(frozen=True)
class Lane:
    """What one dataset brings: how many batches an epoch of it has, its weight, and at which positions it comes and goes."""

    batches: int
    weight: float | None = None
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Segment:
    """Positions, from `start` on, in which the same datasets are there.

    They take turns in rounds of `round` positions, each dataset `counts` times in a round; `lanes` are their numbers.
    Without weights a round is an epoch: all batches that they have, `length`. `bases` are the turns that each dataset
    had before, in whole rounds, and `epochs` how many the run had.
    """

    number: int
    start: int
    length: int
    round: int
    weighted: bool
    lanes: tuple[int, ...]
    counts: Numbers
    bases: tuple[int, ...]
    epochs: int

    def shuffled(self, seed: int, number: int) -> Numbers:
        """Who has which turn in a round, by position: the turns of the first dataset come first, then the second's.

        With weights a dataset's turns come one after the other, so that it is done with one epoch before the next.
        """
        where = (number,) if self.number == 0 else (f"segment {self.number}", number)
        turns = numpy_generator(seed, "batches", *where).permutation(self.round)
        if self.weighted:
            ends = np.cumsum(self.counts)
            for first, end in zip(ends - self.counts, ends, strict=True):
                turns[(turns >= first) & (turns < end)] = np.arange(first, end)
        return turns

    def turn(self, number: int, shuffled: int) -> tuple[int, int]:
        """The lane that a shuffled number of a round belongs to, and which of its turns in the whole run that is."""
        which = int(np.searchsorted(np.cumsum(self.counts), shuffled, side="right"))
        first = int(self.counts[:which].sum())
        return self.lanes[which], self.bases[which] + number * int(self.counts[which]) + shuffled - first


def segments_of(lanes: Sequence[Lane]) -> tuple[Segment, ...]:
    """The segments of a run; none if no dataset has a batch.

    Where no dataset is there, which a config may not ask for, those from before stay, or the first ones come at once.
    """
    weighted = all(lane.weight is not None for lane in lanes)
    made: list[Segment] = []
    stretches = list(_stretches(lanes))
    turns, epochs = [0] * len(lanes), 0
    for (start, present), following in zip_longest(stretches, stretches[1:]):
        batches = [lanes[one].batches for one in present]
        length = sum(batches)
        rounds = -(-ROUND // length) if weighted else 1
        counts = _apportioned([lanes[one].weight or 0 for one in present], rounds * length) if weighted else np.array(batches, np.int64)
        bases = tuple(turns[one] for one in present)
        made.append(Segment(len(made), start, length, rounds * length, weighted, present, counts, bases, epochs))
        if following is not None:
            span = following[0] - start
            epochs += -(-span // length)
            for one, count in zip(present, counts.tolist(), strict=True):
                turns[one] += -(-span // (rounds * length)) * count
    return tuple(made)


def _stretches(lanes: Sequence[Lane]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where each stretch of positions with the same datasets begins, and the numbers of those."""
    cuts = {0} | {lane.start for lane in lanes} | {lane.end for lane in lanes if lane.end is not None}
    before: tuple[int, ...] = ()
    for cut in sorted(cuts):
        present = tuple(
            number for number, lane in enumerate(lanes) if lane.batches and lane.start <= cut and (lane.end is None or cut < lane.end)
        )
        if present and present != before:
            yield (cut if before else 0), present
            before = present


def _apportioned(weights: Sequence[float], turns: int) -> Numbers:
    """So many turns divided by weight, by largest remainder, and at least one for each."""
    exact = np.array(weights) / sum(weights) * turns
    counts = np.maximum(np.floor(exact), 1)
    while counts.sum() < turns:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > turns:
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts.astype(np.int64)

"""What became of the files of a dataset, from found to trained on, with every loss named."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from ..words import printable

Station: TypeAlias = Literal["found", "readable", "captioned", "paired", "sized", "timed", "bucketed", "batched"]
"""Where files pass one after the other: a loss at a station means that the file did not get there."""
STATIONS: tuple[Station, ...] = get_args(Station)
EXAMPLES = 3
"""How many files are named for each reason."""
LINES = 10
"""How many reasons are written out."""


@dataclass
class Lost:
    """Files that were lost at one station for one reason; the first few by name."""

    station: Station
    reason: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} not {self.station}: {self.reason} ({', '.join(map(printable, self.examples))}{more})"


@dataclass
class Funnel:
    """How many files of a dataset passed each station.

    `batches` counts whole batches in one epoch, `drawn` the samples in them: files count as often as they repeat, and
    the remainder of a bucket, `left_over`, is another one each epoch.
    """

    dataset: str
    total: int = 0
    batches: int = 0
    drawn: int = 0
    left_over: int = 0
    notes: list[str] = field(default_factory=list)
    _losses: dict[tuple[Station, str], Lost] = field(default_factory=dict)

    @property
    def losses(self) -> tuple[Lost, ...]:
        """The losses in the order of the stations."""
        return tuple(sorted(self._losses.values(), key=lambda lost: (STATIONS.index(lost.station), lost.reason)))

    def lose(self, station: Station, reason: str, file: str) -> None:
        """Count a file that does not get to `station`."""
        lost = self._losses.setdefault((station, reason), Lost(station, reason))
        lost.count += 1
        if len(lost.examples) < EXAMPLES:
            lost.examples.append(file)

    def forget(self, station: Station) -> None:
        """Drop the losses of a station, to count them again."""
        self._losses = {key: lost for key, lost in self._losses.items() if key[0] != station}

    def passed(self, station: Station) -> int:
        """How many files got as far as `station`."""
        reached = STATIONS.index(station)
        return self.total - sum(lost.count for lost in self._losses.values() if STATIONS.index(lost.station) <= reached)

    def as_json(self) -> dict[str, Any]:
        """The funnel as plain values: `counts` from files found to batches, `losses` with examples, `notes`."""
        counts: dict[str, int] = {station: self.passed(station) for station in STATIONS}
        counts |= {"samples an epoch": self.drawn, "batches": self.batches}
        return {
            "counts": counts,
            "left_over": self.left_over,
            "losses": [asdict(lost) for lost in self.losses],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The funnel as text: the counts, then every loss, then notes."""
        counts = " -> ".join(f"{self.passed(station)} {station}" for station in STATIONS)
        rest = f", {self.left_over} left over each epoch" if self.left_over else ""
        head = f"dataset {self.dataset!r}: {counts} -> {self.batches} whole batches ({self.drawn} samples an epoch{rest})"
        losses = [f"  {lost}" for lost in self.losses[:LINES]]
        if len(self.losses) > LINES:
            losses.append(f"  and {len(self.losses) - LINES} more reasons for {sum(lost.count for lost in self.losses[LINES:])} files")
        return [head, *losses, *(f"  note: {note}" for note in self.notes)]

"""What became of the files of a dataset, from found to trained on, with every loss named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from ..words import printable

Station: TypeAlias = Literal["found", "readable", "captioned", "paired", "sized", "timed", "bucketed", "batched"]
"""Where files pass one after the other: a loss at a station means that the file did not get there."""
STATIONS: tuple[Station, ...] = get_args(Station)
SAMPLES = STATIONS.index("bucketed")
"""From this station on samples are counted, of which a file may give several; before it, files."""
WORDS: Mapping[Station, tuple[str, str]] = {
    "found": ("found", "found"),
    "readable": ("readable", "readable"),
    "captioned": ("captioned", "captioned"),
    "paired": ("paired", "paired"),
    "sized": ("large enough", "of a usable size"),
    "timed": ("long enough", "of a usable length"),
    "bucketed": ("in a bucket", "in a bucket"),
    "batched": ("in a whole batch", "in a whole batch"),
}
"""What is said of files that reach a station, and, after `not`, of those that do not."""
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
        return f"{self.count} not {WORDS[self.station][1]}: {self.reason} ({', '.join(map(printable, self.examples))}{more})"


@dataclass
class Funnel:
    """How many files of a dataset passed each station, and how many samples they gave.

    `more` is how many more samples there are than files that give them: files may give several, and a table may ask for
    a part. `batches` counts whole batches in one epoch, `drawn` the samples in them: samples count as often as they
    repeat, and the remainder of a bucket, `left_over`, is another one each epoch. Stations in `unused` are those where
    nothing of this dataset can be lost; lines leave them out.
    """

    dataset: str
    total: int = 0
    more: int = 0
    batches: int = 0
    drawn: int = 0
    left_over: int = 0
    notes: list[str] = field(default_factory=list)
    unused: set[Station] = field(default_factory=lambda: {"paired", "timed"})
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
        """How many files got as far as `station`; of the stations from `bucketed` on, how many samples."""
        reached = STATIONS.index(station)
        lost = sum(lost.count for lost in self._losses.values() if STATIONS.index(lost.station) <= reached)
        return self.total - lost + (self.more if reached >= SAMPLES else 0)

    def as_json(self) -> dict[str, Any]:
        """The funnel as plain values.

        `counts` has every station by its key (found, readable, captioned, paired, sized, timed: files; bucketed, batched:
        samples), `samples an epoch` and `batches`; `left_over` counts samples; `losses` have `station`, `reason`, `count` and
        `examples`; `notes` are sentences.
        """
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
        rest = f", {self.left_over} left over each epoch" if self.left_over else ""
        head = f"dataset {self.dataset!r}: {self.counts()} -> {self.batches} whole batches ({self.drawn} samples an epoch{rest})"
        return [head, *self.told_losses(), *(f"  note: {note}" for note in self.notes)]

    def counts(self, last: Station = "batched") -> str:
        """The counts as text, up to a station."""
        parts: list[str] = []
        for station in STATIONS[: STATIONS.index(last) + 1]:
            if STATIONS.index(station) == SAMPLES and self.more:
                parts.append(f"{self.passed(station) + self._lost_at(station)} samples")
            if station not in self.unused or self._lost_at(station):
                parts.append(f"{self.passed(station)} {WORDS[station][0]}")
        return " -> ".join(parts)

    def told_losses(self) -> list[str]:
        """Every loss as a line, as far as there is room."""
        losses = [f"  {lost}" for lost in self.losses[:LINES]]
        if len(self.losses) > LINES:
            losses.append(f"  and {len(self.losses) - LINES} more reasons for {sum(lost.count for lost in self.losses[LINES:])} files")
        return losses

    def _lost_at(self, station: Station) -> int:
        return sum(lost.count for lost in self._losses.values() if lost.station == station)

"""Repairing in the middle of a run: what the cache has lost since it was filled is encoded again."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from ..batch import Batch, Caption, Crop, Field, Source, Window
from ..cache.store import Store
from ..data.order import Order
from ..errors import RunFailed
from ..kinds import Unreadable
from .encode import Inputs, batch_of, encode, named, needs_of, shape_of, values_of

if TYPE_CHECKING:
    from ..run import Run

Part: TypeAlias = tuple[str, Caption | tuple[str, Path, Crop, Window | None]]
"""A field and what its value belongs to: a caption, or a part of a file as a dataset sees it."""


@dataclass
class TornBatch(Batch):
    """A batch of which the cache has lost some values: what it still has, and the inputs of what is to be encoded again."""

    values: dict[Part, Tensor] = field(default_factory=dict)
    lost: dict[Part, tuple[str, Source]] = field(default_factory=dict)
    decoded: dict[Part, Inputs] = field(default_factory=dict)


class Repairs:
    """Encodes again what was lost: `torn` is the reading thread's, the rest the main thread's.

    All batches that are torn by then are repaired together, so that the encoders are loaded seldom; they are released
    before the next step.
    """

    def __init__(self, run: Run, order: Order, fields: Sequence[Field], cache: Store) -> None:
        self.run = run
        self.order = order
        self.fields = {one.key: one for one in fields}
        self.cache = cache
        self._torn: list[TornBatch] = []
        self._lock = threading.Lock()

    def torn(self, sources: Sequence[Source], values: dict[Part, Tensor], lost: dict[Part, tuple[str, Source]]) -> TornBatch:
        """A batch that wants what was lost, with the inputs for it; RunFailed if a file cannot be decoded any more."""
        captions = tuple(source.caption for source in sources)
        wanted = frozenset(key for key, _ in lost)
        batch = TornBatch(tuple(sources), captions, wanted=wanted, values=values, lost=lost)
        for part, (_, source) in lost.items():
            batch.decoded[part] = self._inputs(self.fields[part[0]], source)
        with self._lock:
            self._torn.append(batch)
        return batch

    def values_of(self, batch: TornBatch) -> Mapping[Part, Tensor]:
        """All values of a torn batch; encodes what no earlier repair has made."""
        if any(one is batch for one in self._torn):
            with self._lock:
                together, self._torn = self._torn, []
            self._repair(together)
        return batch.values

    def _inputs(self, one: Field, source: Source) -> Inputs:
        dataset = self.order.datasets[source.dataset]
        try:
            return {need: dataset.load(source, need) for need in needs_of([one], dataset)}
        except Unreadable as error:
            raise RunFailed(
                f"the cache no longer holds {one.key!r} of {source}, and it cannot be made again: {error.reason}; "
                "put the file back, or start again without it"
            ) from error

    def _repair(self, together: Sequence[TornBatch]) -> None:
        """Encode what these batches lack, each key once, and give all of them its value."""
        lost = {key: (part, source, batch.decoded[part]) for batch in together for part, (key, source) in batch.lost.items()}
        made = self.cache.get_many(lost)
        groups: dict[tuple[object, ...], list[str]] = {}
        for key, (part, source, _) in lost.items():
            if key not in made:
                shape = shape_of(source) if self.fields[part[0]].per_sample else ()
                groups.setdefault((part[0], *shape), []).append(key)
        if groups:
            self._tell([lost[key][1] for keys in groups.values() for key in keys])
            for (name, *_), keys in groups.items():
                made |= self._encoded(self.fields[str(name)], {key: lost[key][1:] for key in keys})
            self.cache.flush()
            self.run.release_encoders()
        for batch in together:
            batch.values |= {part: made[key].clone() for part, (key, _) in batch.lost.items()}

    def _encoded(self, one: Field, lost: Mapping[str, tuple[Source, Inputs]]) -> dict[str, Tensor]:
        """The values of one field for samples of one shape, put into the cache."""
        made: dict[str, Tensor] = {}
        keys, size = list(lost), self.run.config.run.batch_size
        for some in (keys[start : start + size] for start in range(0, len(keys), size)):
            sources, inputs = [lost[key][0] for key in some], [lost[key][1] for key in some]
            if one.per_sample:
                encoded = encode(self.run, batch_of(sources, inputs, [one.key]))
            else:
                encoded = encode(self.run, Batch(captions=tuple(source.caption for source in sources), wanted=frozenset([one.key])))
            names = [named(source if one.per_sample else source.caption) for source in sources]
            made |= dict(zip(some, values_of(one, encoded, names), strict=True))
        self.cache.put_many(made, one.key)
        return made

    def _tell(self, sources: Sequence[Source]) -> None:
        names = list(dict.fromkeys(map(str, sources)))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        self.run.progress.message(f"encoding {len(sources)} cache entries again that were damaged or gone: of {', '.join(names[:3])}{more}")


def part_of(one: Field, source: Source) -> Part:
    """What a field's value of a source belongs to."""
    return one.key, (source.dataset, source.file, source.crop, source.window) if one.per_sample else source.caption

"""What each setting would save of a run's memory, and the cheapest of them with which it fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .config import Config, load_config
from .errors import InputError
from .levers import all_levers, assignments, written
from .outlook import Largest, PhaseFacts, facts_of, foretell
from .plugin import LAST_RESORT, Lever
from .rehearsal import Phase
from .session import assemble

GIB = 2**30
RESERVED_SHARE = 0.1
"""Share of a device that is left for what no tensor holds: pieces between allocations, kernels' own room, libraries."""
LEAST_RESERVED = GIB
"""The least that is left: the context of CUDA alone takes about half of it."""
HARM = 1.0
"""The price from which on a lever costs more than time."""
NOTICED = 0.01
"""A saving that is a smaller share of the peak is none."""

Changes = Mapping[str, bool | int | str]
Look = Callable[[Changes], "Sequence[Phase] | None"]
"""What a run takes with these changes; None where it would be refused, or nothing would change."""
Tell = Callable[[str], None]
"""Is told what is being looked at."""


@dataclass(frozen=True)
class Saving:
    """Changes of the config, as `--set` takes them, what they cost, and what the run takes with them."""

    settings: list[str]
    costs: list[str]
    price: float
    phases: list[PhaseFacts]
    peak: int


@dataclass(frozen=True)
class Savings:
    """What a run on a device of `vram` bytes could do to take less of it.

    `limit` is what is there for tensors, after the reserve. `options` are changes that save something, each alone. `proposed`
    is empty where the run fits as it is; otherwise it `fits`, or comes nearest of all that was tried.
    """

    vram: int
    limit: int
    fits: bool
    options: list[Saving]
    proposed: Saving | None


@dataclass(frozen=True)
class _Chosen:
    """Levers, cheapest first, with what a run takes with them."""

    levers: tuple[Lever, ...]
    phases: Sequence[Phase]

    @property
    def peak(self) -> int:
        return max(phase.peak for phase in self.phases)

    @property
    def price(self) -> float:
        return sum(lever.price for lever in self.levers)


def limit_of(vram: int) -> int:
    """The bytes of a device that tensors may take."""
    return vram - max(LEAST_RESERVED, round(RESERVED_SHARE * vram))


def savings(config: Config, largest: Largest, phases: Sequence[Phase], vram: int, tell: Tell = lambda text: None) -> Savings:
    """What could be done for a run that takes these phases on a device of so many bytes; the config's file is read again."""
    return Search(all_levers(config), Looking(config, largest, tell), phases).on(vram)


class Looking:
    """Looks at a config with changes, as often as asked, and goes through each one once."""

    def __init__(self, config: Config, largest: Largest, tell: Tell = lambda text: None) -> None:
        self.config = config
        self.largest = largest
        self.tell = tell
        self.seen: dict[tuple[str, ...], Sequence[Phase] | None] = {}

    def __call__(self, changes: Changes) -> Sequence[Phase] | None:
        """What the run takes with these changes."""
        texts = tuple(f"{key}={written(value)}" for key, value in sorted(changes.items()))
        if texts not in self.seen:
            self.seen[texts] = self._look(texts)
        return self.seen[texts]

    def _look(self, texts: tuple[str, ...]) -> Sequence[Phase] | None:
        try:
            changed = load_config(self.config.path, [*self.config.overrides, *texts])
            if changed.settings() == self.config.settings():
                return None
            cast = assemble(changed)
        except InputError:
            return None
        self.tell(" ".join(texts))
        return foretell(changed, cast, self.largest).phases or None


class Search:
    """The search for the cheapest levers, of which there are several to a setting, and some are refused without others."""

    def __init__(self, levers: Sequence[Lever], look: Look, phases: Sequence[Phase]) -> None:
        self.levers = sorted(levers, key=lambda lever: (lever.price, assignments(lever)))
        self.look = look
        self.start = _Chosen((), phases)
        alone = [(lever, look(lever.changes)) for lever in self.levers]
        self.alone = [_Chosen((lever,), found) for lever, found in alone if found is not None]

    def on(self, vram: int) -> Savings:
        """The answer for a device of so many bytes."""
        limit = limit_of(vram)
        options = [_saving(one) for one in self.alone if _saves(one.phases, self.start.phases)]
        if self.start.peak <= limit:
            return Savings(vram, limit, True, options, None)
        best = self._cheapest(limit)
        return Savings(vram, limit, best.peak <= limit, options, _saving(best) if best.levers else None)

    def _cheapest(self, limit: int) -> _Chosen:
        """One lever with which it fits, or several that cost less together."""
        one = next((one for one in self.alone if one.peak <= limit), None)
        if one is not None and one.price < HARM:
            return one
        several = self._combined(limit)
        return one if one is not None and (several.peak > limit or one.price <= several.price) else several

    def _combined(self, limit: int) -> _Chosen:
        """Levers that fit together, or come nearest; with one that changes what is learnt only where the others are not enough."""
        best = self._grown(self.start, limit)
        for last in (lever for lever in self.levers if lever.price >= LAST_RESORT):
            start = None if best.peak <= limit else self._found((last,))
            if start is not None:
                best = min(best, self._grown(start, limit), key=lambda one: _excess(one.phases, limit))
        return best

    def _grown(self, start: _Chosen, limit: int) -> _Chosen:
        """The start with the cheapest levers that help until it fits, without those that are not needed then."""
        levers = [lever for lever in self.levers if lever.price < LAST_RESORT]
        useless = [one.levers[0] for one in self.alone if _excess(one.phases, limit) >= _excess(self.start.phases, limit)]
        chosen = self._taken(start, [lever for lever in levers if lever not in useless], limit)
        before = None
        while chosen is not before and chosen.peak > limit:  # with what has been taken, others are accepted or help
            before = chosen
            chosen = self._taken(chosen, levers, limit)
        return self._without_needless(chosen, limit)

    def _taken(self, chosen: _Chosen, levers: Sequence[Lever], limit: int) -> _Chosen:
        """The choice and those of the levers that help it, in their order, until it fits."""
        for lever in levers:
            if chosen.peak > limit and lever not in chosen.levers:
                chosen = self._with(chosen, lever, limit) or chosen
        return chosen

    def _with(self, chosen: _Chosen, lever: Lever, limit: int) -> _Chosen | None:
        """The choice with one more, without those that set the same otherwise or that it is refused with; None if that does not help."""
        kept = tuple(one for one in chosen.levers if not _contradict(one, lever))
        for levers in (kept, *(tuple(one for one in kept if one is not other) for other in reversed(kept))):
            found = self._found((*levers, lever))
            if found is not None:
                helps = _excess(found.phases, limit) < _excess(chosen.phases, limit) - NOTICED * limit or found.peak <= limit
                return found if helps else None
        return None

    def _without_needless(self, chosen: _Chosen, limit: int) -> _Chosen:
        """The choice without those that it fits, or comes as near, without; the dearest go first."""
        for lever in sorted(chosen.levers, key=lambda one: -one.price):
            fewer = self._found(tuple(one for one in chosen.levers if one is not lever))
            if fewer is not None and _excess(fewer.phases, limit) <= _excess(chosen.phases, limit):
                chosen = fewer
        return chosen

    def _found(self, levers: tuple[Lever, ...]) -> _Chosen | None:
        if not levers:
            return self.start
        phases = self.look({key: value for lever in levers for key, value in lever.changes.items()})
        return None if phases is None else _Chosen(tuple(sorted(levers, key=self.levers.index)), phases)


def _contradict(one: Lever, other: Lever) -> bool:
    return any(other.changes.get(key, value) != value for key, value in one.changes.items())


def _excess(phases: Sequence[Phase], limit: int) -> int:
    """By how many bytes phases are over the limit, all together."""
    return sum(max(0, phase.peak - limit) for phase in phases)


def _saves(phases: Sequence[Phase], before: Sequence[Phase]) -> bool:
    """Whether one of the phases takes less than before."""
    was = {phase.name: phase.peak for phase in before}
    return any(phase.peak < (1 - NOTICED) * was[phase.name] for phase in phases if phase.name in was)


def _saving(chosen: _Chosen) -> Saving:
    changes = {key: value for lever in chosen.levers for key, value in lever.changes.items()}
    texts = [f"{key}={written(value)}" for key, value in changes.items()]
    return Saving(texts, [lever.costs for lever in chosen.levers], round(chosen.price, 2), facts_of(chosen.phases), chosen.peak)

"""How a plan tells what would save memory, and what fits."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .savings import NOTICED
from .screen_parts import Block, Line, size_text

if TYPE_CHECKING:
    from .outlook import MemoryFacts
    from .savings import Saving, Savings


def savings_blocks(savings: Savings, memory: MemoryFacts) -> Iterator[Block]:
    """What each change would save, and those that are proposed."""
    reserved = f"{size_text(savings.limit)} of {size_text(savings.vram)}: the rest is for what a forecast does not see"
    if savings.options:
        yield Line("what would save memory, each alone:")
        for option in savings.options:
            yield Line(f"  {_saved(option, memory)}, with {' '.join(option.settings)}")
            yield Line(f"      it costs: {'; '.join(option.costs)}", "dim")
    if savings.proposed is None and savings.fits:
        yield Line(f"the run fits into {reserved}", "green")
    elif savings.proposed is None:
        yield Line(f"the run does not fit into {reserved}; nothing that is installed would save enough to speak of", "red")
    else:
        yield from _proposal(savings.proposed, savings.fits, reserved)


def _proposal(saving: Saving, fits: bool, reserved: str) -> Iterator[Block]:
    peak = size_text(saving.peak)
    if fits:
        yield Line(f"with this the run takes {peak} and fits into {reserved}:", "green")
    else:
        yield Line(f"nothing that is installed makes the run fit into {reserved}; this comes nearest, with {peak}:", "red")
    yield Line("  " + " ".join(f"--set {shlex.quote(text)}" for text in saving.settings))
    yield from (Line(f"  it costs: {cost}") for cost in dict.fromkeys(saving.costs))


def _saved(saving: Saving, memory: MemoryFacts) -> str:
    """What is saved of the peak, and what that is then; or where the peak is another phase's, what is saved in the one with the most."""
    saved = (memory.peak or 0) - saving.peak
    if saved >= NOTICED * (memory.peak or 0):
        return f"{size_text(saved)} less: {size_text(saving.peak)}"
    was = {phase.name: phase.peak for phase in memory.phases}
    saved, name, peak = max((was.get(phase.name, phase.peak) - phase.peak, phase.name, phase.peak) for phase in saving.phases)
    return f"{size_text(saved)} less in {name} alone: {size_text(peak)}"

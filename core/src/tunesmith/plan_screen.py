"""How a plan looks: tables on a terminal, aligned lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .data.duplicates import Duplicates
from .data.funnel import EXAMPLES, SAMPLES, STATIONS, WORDS
from .data.preflight import BucketFacts, CaptionFacts, DatasetFacts, Retiming
from .savings_screen import savings_blocks
from .screen_parts import Block, Grid, Line, size_text
from .words import printable

if TYPE_CHECKING:
    from .outlook import MemoryFacts, PhaseFacts
    from .plan import Plan, PreviewFacts

MOST_ROWS = 24
"""Rows of a table that are written out; the JSON has all."""


class PlanScreen:
    """A plan that a rich console can print."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for block in _blocks(self.plan):
            if isinstance(block, Line):
                yield Text(printable(block.text), style=block.style)
            elif options.is_terminal:
                yield Padding(_table(block), (0, 0, 0, 2), expand=False)
            else:
                yield from (Text(line) for line in _aligned(block))


def _table(grid: Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(grid.heads):
        table.add_column(head, justify="right" if _is_numeric(grid, number) else "left", overflow="fold")
    for row in _shown(grid):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _aligned(grid: Grid) -> Iterator[str]:
    rows = [grid.heads, *_shown(grid)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [_is_numeric(grid, number) for number in range(len(widths))]
    for row in rows:
        cells = (cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()


def _is_numeric(grid: Grid, column: int) -> bool:
    return all(row[column][:1].isdigit() or not row[column] for row in grid.rows)


def _shown(grid: Grid) -> list[tuple[str, ...]]:
    rows = [tuple(map(printable, row)) for row in grid.rows[:MOST_ROWS]]
    if len(grid.rows) > MOST_ROWS:
        more = f"... and {len(grid.rows) - MOST_ROWS} more {grid.what}"
        rows.append((more, *[""] * (len(grid.heads) - 1)))
    return rows


def _blocks(plan: Plan) -> Iterator[Block]:
    yield Line(f"{plan.run}: {plan.family}, with {', '.join(plan.plugins) or 'no plugins'}", "bold")
    for problem in plan.problems:
        yield Line(str(problem), "red")
    for note in plan.notes:
        yield Line(f"note: {note}", "yellow")
    for dataset in plan.datasets:
        yield from _dataset(dataset)
    yield from (Line(told, "yellow") for told in _duplicates(plan.duplicates))
    if not plan.problems:
        yield from _run(plan)
        yield from _costs(plan)
    if plan.sheet is not None:
        yield Line(f"contact sheet: {plan.sheet}")


def _costs(plan: Plan) -> Iterator[Block]:
    cache = "nothing is cached, all is encoded on the fly"
    if plan.cache_bytes is not None:
        where = "memory" if plan.cache == "memory" else "the cache"
        cache = f"{where} takes {size_text(plan.cache_bytes)} before compression (captions, masks and what plugins add not counted)"
    yield Line(cache)
    yield from _memory(plan.memory)
    if plan.savings is not None:
        yield from savings_blocks(plan.savings, plan.memory)


def _memory(memory: MemoryFacts) -> Iterator[Block]:
    """What each phase takes, or why that is not known."""
    told = f"memory of a model of {memory.parameters / 1e6:.1f} M parameters"
    if memory.reason is not None:
        yield Line(f"{told}: no forecast, for {memory.reason}")
        return
    size = memory.size
    frames = f", {size.frames} frames" if size.frames > 1 else ""
    count = "one sample" if memory.batch_size == 1 else f"{memory.batch_size} samples"
    yield Line(f"{told}, forecast for {count} of {size.width}x{size.height}{frames} at a time:")
    yield Grid(("phase", "weights", "gradients", "optimizer", "activations", "peak"), [_phase(one) for one in memory.phases], "phases")
    yield from (Line(f"  note: {note}", "yellow") for note in memory.notes)


def _phase(one: PhaseFacts) -> tuple[str, ...]:
    return (one.name, *map(size_text, (one.weights, one.gradients, one.optimizer, one.activations, one.peak)))


def _duplicates(found: Sequence[Duplicates]) -> Iterator[str]:
    for why, meaning in (("same bytes", "each counts as a sample of its own"), ("same name", "they share their captions and companions")):
        groups = [", ".join(f"{dataset}:{name}" for dataset, name in one.files[:EXAMPLES]) for one in found if one.why == why]
        if groups:
            more = "; ..." if len(groups) > EXAMPLES else ""
            yield f"duplicates, {why}: {len(groups)} ({'; '.join(groups[:EXAMPLES])}{more}); {meaning}"


def _run(plan: Plan) -> Iterator[Block]:
    trained = "the whole model is trained" if plan.trains_base else "the base is frozen and adapters are trained"
    yield Line(
        f"steps: {plan.steps}, epochs: {plan.epochs or 0:.2f}; batches an epoch: {plan.batches_per_epoch}, steps an epoch: "
        f"{plan.steps_per_epoch:.6g} (gradient_accumulation: {plan.gradient_accumulation}, processes: {plan.processes}); {trained}"
    )
    yield Line(f"sigma shift by size: {', '.join(f'{size}: {shift:.3g}' for size, shift in plan.sigma_shift.items())}")
    yield Line(f"each validation makes {_made(plan.validation, plan.validation_samples)}")


def _made(facts: PreviewFacts, count: int) -> str:
    if not count:
        return "nothing"
    one = "picture" if facts.frames == 1 and facts.kind in ("image", "clip") else facts.kind
    length = f", {facts.frames} frames at {facts.fps:g} fps" if facts.frames > 1 else ""
    return f"{count} {one if count == 1 else f'{one}s'} of {' and '.join(facts.sizes)}{length}"


def _dataset(facts: DatasetFacts) -> Iterator[Block]:
    steps = f", from step {facts.start_step} to {facts.end_step or 'the end'}" if facts.start_step or facts.end_step else ""
    yield Line(f"dataset {facts.name!r}: {facts.kind}, {facts.origin}{steps}", "bold")
    yield Grid(("files", "", "lost", "why"), list(_funnel(facts)), "reasons")
    clips = any(bucket.frames > 1 for bucket in facts.buckets)
    if facts.buckets:
        heads = ("bucket", *(("frames",) if clips else ()), "samples", "batches an epoch", "left over", "latents")
        yield Grid(heads, [_bucket(bucket, clips) for bucket in facts.buckets], "buckets")
    if facts.retiming:
        heads = ("source fps", "trained fps", "samples", "frames", "seconds", "frames of the whole clips, at the trained fps")
        yield Grid(heads, [_retimed(one) for one in facts.retiming], "rates")
    yield Line(
        f"  batches of {facts.batch_size} an epoch: {facts.batches_per_epoch}, {facts.share:.1%} of the run's; "
        f"samples a step: {facts.samples_per_step}"
        + (f"; each sample {facts.repeats} times an epoch" if facts.repeats > 1 else "")
        + (f"; {facts.variants} drawn parts of each sample are cached" if facts.variants > 1 else "")
    )
    yield Line(f"  {_captions(facts.captions)}")
    yield from (Line(f"  note: {note}", "yellow") for note in facts.funnel["notes"])
    yield from (Line(f"  remedy: {remedy}", "green") for remedy in facts.remedies)


def _funnel(facts: DatasetFacts) -> Iterator[tuple[str, ...]]:
    """Each station with what it lost, a row for each reason; from some station on samples are counted."""
    counts = facts.funnel["counts"]
    for station in STATIONS:
        losses = [loss for loss in facts.funnel["losses"] if loss["station"] == station]
        samples = counts[station] + sum(loss["count"] for loss in losses)
        if station == STATIONS[SAMPLES] and samples != counts[STATIONS[SAMPLES - 1]]:
            yield (str(samples), "samples of them", "", "")
        reached = (str(counts[station]), WORDS[station][0])
        if not losses and station not in facts.stations:
            continue
        for loss in losses:
            yield (*reached, str(loss["count"]), _loss(loss))
            reached = ("", "")
        if not losses:
            yield (*reached, "", "")


def _loss(loss: Mapping[str, Any]) -> str:
    more = ", ..." if loss["count"] > len(loss["examples"]) else ""
    return f"{loss['reason']} ({', '.join(loss['examples'])}{more})"


def _bucket(bucket: BucketFacts, clips: bool) -> tuple[str, ...]:
    frames = (str(bucket.frames),) if clips else ()
    latents = size_text(bucket.cache_bytes) if bucket.batches else ""
    size = f"{bucket.width}x{bucket.height}" if bucket.width else f"{bucket.seconds:g} s"
    return (size, *frames, str(bucket.samples), str(bucket.batches), str(bucket.left_over), latents)


def _retimed(one: Retiming) -> tuple[str, ...]:
    wholes = str(one.shortest) if one.shortest == one.longest else f"{one.shortest} to {one.longest}"
    return (f"{one.source_fps:g}", f"{one.trained_fps:g}", str(one.samples), str(one.frames), f"{one.seconds:.2f}", wholes)


def _captions(captions: CaptionFacts) -> str:
    told = f"different captions: {captions.distinct}"
    if not captions.distinct:
        return told
    if captions.limit is None:
        return f"{told}; how much of one the encoder reads is not known"
    if not captions.counted:
        return f"{told}; {captions.limit} tokens of each are read, which cannot be counted on this machine"
    counted = "" if captions.counted == captions.distinct else f" ({captions.counted} of them, evenly spread, were counted)"
    if not captions.too_long:
        return f"{told}{counted}; the longest has {captions.longest} of the {captions.limit} tokens that are read"
    more = ", ..." if captions.too_long > len(captions.examples) else ""
    return (
        f"{told}{counted}; longer than the {captions.limit} tokens that are read, so that they lose their end: {captions.too_long} "
        f"({', '.join(captions.examples)}{more}; the longest has {captions.longest})"
    )

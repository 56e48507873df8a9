"""What a run would do, told before any weight is loaded: data, steps, cache, memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import RenderableType

from .config import Config, Problem
from .config.datasets import MaskTable, SampleTable
from .contract import CORE
from .data.dataset import Dataset
from .data.duplicates import Duplicates, duplicates
from .data.hashing import FileHashes
from .data.order import Order
from .data.preflight import DatasetFacts, examine, heavy_loss
from .data.segments import Lane, segments_of
from .data.sheet import check_place, draw_sheet
from .engine import choose_device, require_one_process, require_precision
from .errors import InputError
from .family import Family
from .hooks import HookCaller
from .noise import SigmaSampler
from .outlook import Largest, MemoryFacts, facts_of, foretell, largest_samples, notes_of
from .previews import count_previews
from .savings import Savings, Tell, savings
from .session import FILE_HASHES, Assembly, assemble, remarks, survey_data, total_steps
from .validation import sizes


@dataclass(frozen=True)
class PreviewFacts:
    """What each validation makes: the kind of media, its sizes, and of clips their frames and rate; 1 and 0 of pictures."""

    kind: str
    sizes: list[str]
    frames: int
    fps: float


@dataclass(frozen=True)
class Plan:
    """The answers of `tune plan`; their names are the keys of its JSON, and stay.

    The run can start if there are no `problems`. `epochs` is None where there are no batches. `cache_bytes` are those of
    all latents, None where nothing is cached; what captions and other fields take is not known before they are encoded.
    `memory` is what the device is to hold, in bytes; `savings` are there if it was asked what would fit. `sheet` is the file of
    the contact sheet, if one was asked for and there was something to draw.
    """

    run: str
    family: str
    plugins: list[str]
    problems: list[Problem]
    datasets: list[DatasetFacts]
    processes: int
    gradient_accumulation: int
    batches_per_epoch: int
    steps_per_epoch: float
    steps: int
    epochs: float | None
    sigma_shift: dict[str, float]
    cache: bool | str
    cache_bytes: int | None
    validation_samples: int
    validation: PreviewFacts
    memory: MemoryFacts
    trains_base: bool
    notes: list[str]
    duplicates: list[Duplicates]
    sheet: str | None = None
    savings: Savings | None = None

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values, and `ready`, which says whether the run can start."""
        return {"ready": not self.problems, **asdict(self)}

    def render(self) -> RenderableType:
        """The plan for a console: tables on a terminal, lines elsewhere."""
        from .plan_screen import PlanScreen

        return PlanScreen(self)


def make_plan(
    config: Config, sheet: Path | None = None, vram: int | None = None, tell: Tell = lambda text: None, forecasts: bool = True
) -> Plan:
    """Look at the data and the model's configuration, and draw a contact sheet where one is asked for.

    With the bytes of a device, `vram`, look for what would fit on it; `tell` is told what is being looked at. Unless it
    `forecasts`, memory is not gone through, which takes the most of the time. InputError where there can be no plan; datasets
    that keep the run from starting are problems of the plan.
    """
    if sheet is not None:
        check_place(sheet, [Path(table.path) for table in config.datasets if table.path is not None])
    processes = world_size(os.environ)
    cast = assemble(config)
    family = cast.family
    surveyed, problems = survey_data(config, cast, makes_index=False)
    for number, dataset in surveyed.items():
        if not dataset.funnel.batches:
            problems.append(config.problem(("datasets", number), f"dataset {dataset.name!r} yields no whole batch"))
    datasets = list(surveyed.values())
    trained = [dataset for dataset in datasets if dataset.funnel.batches]
    accumulation = config.run.gradient_accumulation
    order = Order(trained, config.run.seed, cached=bool(config.run.cache), accumulation=accumulation)
    steps = total_steps(config, order)
    batches_a_step = accumulation * processes
    parts = shares(trained, accumulation, steps)
    made = _made(config, family)
    look = partial(examine, family=family, batches_a_step=batches_a_step, values=_values(config, family))
    facts = [look(dataset, share=parts.get(dataset.name, 0.0)) for dataset in datasets]
    notes = remarks(config, cast)
    notes += [*filter(None, map(heavy_loss, datasets)), *_notes(config, steps, processes), *_unread_masks(config, cast.hooks)]
    num_samples = count_previews(config, datasets) * len(made.sizes) * len(config.validation.seeds)
    notes += _beyond_training(made, trained) if num_samples else ()
    drawn, told = _drawn(order, bool(trained), sheet)
    notes += told
    unknown = _unknown(problems, processes) if forecasts else "it was not asked for"
    taken, saved = _memory(config, cast, largest_samples(family, surveyed, config), unknown, vram, tell)
    return Plan(
        run=config.run_name,
        family=family.name,
        plugins=[plugin.name for plugin in cast.hooks.plugins if plugin.name not in (CORE, config.family)],
        problems=sorted(problems, key=lambda problem: problem.line or 0),
        datasets=facts,
        processes=processes,
        gradient_accumulation=accumulation,
        batches_per_epoch=order.batches_per_epoch,
        steps_per_epoch=order.batches_per_epoch / batches_a_step,
        steps=steps,
        epochs=steps * batches_a_step / order.batches_per_epoch if order.batches_per_epoch else None,
        sigma_shift=_sigma_shift(config, family, datasets),
        cache=config.run.cache,
        cache_bytes=sum(one.cache_bytes for one in facts) if config.run.cache else None,
        validation_samples=num_samples,
        validation=made,
        memory=taken,
        trains_base=config.trains_base,
        notes=notes,
        duplicates=_duplicates(config, datasets),
        sheet=drawn,
        savings=saved,
    )


def _drawn(order: Order, has_batches: bool, sheet: Path | None) -> tuple[str | None, list[str]]:
    """The contact sheet, where one is asked for, and what there is to say of it."""
    if sheet is None:
        return None, []
    return draw_sheet(order, sheet) if has_batches else (None, ["no contact sheet is drawn: there is no whole batch of anything"])


def _unknown(problems: Sequence[Problem], processes: int) -> str | None:
    """Why it cannot be told what memory the run takes."""
    return "the run cannot start as it is" if problems else "it is made for one process alone" if processes > 1 else None


def world_size(environment: Mapping[str, str]) -> int:
    """How many processes a launcher says there are; InputError if it says no number."""
    told = environment.get("WORLD_SIZE", "1")
    if not re.fullmatch(r"[1-9][0-9]{0,5}", told):
        raise InputError(f"the environment has WORLD_SIZE = {told!r}, which should be the number of processes; unset it for one")
    return int(told)


def shares(datasets: Sequence[Dataset], accumulation: int, steps: int) -> dict[str, float]:
    """The part of a run's batches that each dataset gives, by its weight or its own batches and from when to when it is there."""
    lanes = []
    for dataset in datasets:
        table = dataset.table
        end = None if table.end_step is None else table.end_step * accumulation
        lanes.append(Lane(dataset.funnel.batches, table.weight, table.start_step * accumulation, end))
    if not lanes or not steps:
        return {}
    segments = segments_of(lanes)
    given = [0.0] * len(lanes)
    for segment, following in zip(segments, [*(one.start for one in segments[1:]), steps * accumulation], strict=True):
        span = max(0, min(following, steps * accumulation) - segment.start)
        for lane, count in zip(segment.lanes, segment.counts.tolist(), strict=True):
            given[lane] += span * count / segment.round
    return {dataset.name: one / (steps * accumulation) for dataset, one in zip(datasets, given, strict=True)}


def _memory(
    config: Config, cast: Assembly, largest: Largest, unknown: str | None, vram: int | None, tell: Tell
) -> tuple[MemoryFacts, Savings | None]:
    """What the run takes of the device, and what would save some of that; neither is asked where there is a reason not to."""
    parameters = sum(parameter.numel() for parameter in cast.family.on_meta().parameters())
    batch_size = largest.batch_size(config)
    if unknown is not None:
        return MemoryFacts(parameters, largest.size, batch_size, [], None, unknown), None
    tell("memory")
    told = foretell(config, cast, largest)
    peak, notes = told.peak if told.phases else None, notes_of(told, config)
    facts = MemoryFacts(parameters, largest.size, batch_size, facts_of(told.phases), peak, told.reason, notes)
    return facts, None if vram is None or not told.phases else savings(config, largest, told.phases, vram, tell)


def _duplicates(config: Config, datasets: Sequence[Dataset]) -> list[Duplicates]:
    """The duplicates of a run; contents that runs have hashed are taken from the cache, and others not put there."""
    with ExitStack() as stack:
        known = config.run.cache_dir / FILE_HASHES
        place = known if known.is_file() else Path(stack.enter_context(TemporaryDirectory())) / FILE_HASHES
        return duplicates(datasets, stack.enter_context(FileHashes(place)))


def _values(config: Config, family: Family) -> int:
    """How many numbers are cached for each one of a sample's latents: with its distribution there is a spread beside the mean."""
    return 2 if family.latent_distribution and config.run.latents == "sample" else 1


def _sigma_shift(config: Config, family: Family, datasets: Sequence[Dataset]) -> dict[str, float]:
    """The shift of the noise schedule for each size that is trained."""
    sigmas = SigmaSampler(config.noise, family.noise_shift)
    buckets = sorted({bucket for dataset in datasets for bucket in dataset.buckets if bucket[0]})
    return {
        f"{width}x{height}" + (f"@{frames}" if frames > 1 else ""): sigmas.shift(family.token_grid(frames, height, width).tokens)
        for width, height, frames in buckets
    }


def _made(config: Config, family: Family) -> PreviewFacts:
    is_clip = family.makes == "clip"
    frames = (config.validation.num_frames or family.defaults.frames) if is_clip else 1
    where = [f"{width}x{height}" for width, height in sizes(config, family)]
    return PreviewFacts(family.makes, where, frames, family.defaults.fps if is_clip else 0.0)


def _beyond_training(made: PreviewFacts, trained: Sequence[Dataset]) -> Iterator[str]:
    """Clips of validation that are longer than all that is trained on."""
    longest = max((frames for dataset in trained for width, _, frames in dataset.buckets if width), default=made.frames)
    if made.frames > longest:
        yield (
            f"validation makes clips of {made.frames} frames, and the longest that is trained on has {longest}: "
            f"[validation] num_frames = {longest} shows what is trained"
        )


def _notes(config: Config, steps: int, processes: int) -> Iterator[str]:
    """What is allowed and probably not meant, and what this very machine would refuse."""
    for table in config.datasets:
        if not isinstance(table, SampleTable):
            continue
        if table.is_regularisation:
            yield _regularisation(table.name or "", config.trains_base)
        if 0 < steps <= table.start_step:
            yield f"dataset {table.name!r} is never trained on: it comes in at step {table.start_step}, and the run has {steps}"
    if steps and config.optimizer.warmup >= steps:
        yield f"[optimizer] warmup = {config.optimizer.warmup} is not over after the {steps} steps of the run"
    try:
        require_precision(config.run, choose_device(config.run.device))
        require_one_process(processes)
    except InputError as error:
        yield f"on this machine the run would be refused: {error}"


def _unread_masks(config: Config, hooks: HookCaller) -> Iterator[str]:
    """Masks that nothing can weigh the loss by: the core brings them to the loss and no further."""
    if any(name != CORE for name, _ in hooks.nesting("compute_loss")):
        return
    for table in config.datasets:
        if isinstance(table, MaskTable):
            yield (
                f"the masks of {table.name!r} change nothing in this run but which samples are left out: no plugin of it takes part "
                "in `compute_loss`, and only one that does can weigh the loss by them"
            )


def _regularisation(name: str, trains_base: bool) -> str:
    if trains_base:
        return (
            f"dataset {name!r} is ordinary data in this run: is_regularisation needs an adapter, without which the model could predict "
            "its target; the whole model is trained here"
        )
    return f"dataset {name!r} keeps what the model knows (is_regularisation): its target is the model's own prediction without the adapter"

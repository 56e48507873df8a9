"""A run from its config to its last checkpoint: the phases, in their order."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from types import FrameType
from typing import Any

from . import checkpoints
from .activations import checkpoint_blocks
from .batch import Field, Source
from .builtin import CoreAroundObjective, CoreSettings, CoreWithObjective
from .cache.disk import Cache
from .cache.store import MemoryCache, Store
from .cache.users import user_of
from .compiling import compile_blocks, require_compiler
from .config import Config, ConfigErrors, Problem
from .contract import CORE, implementations
from .data.dataset import Dataset
from .data.hashing import FileHashes
from .data.loader import Loader
from .data.order import Order
from .data.scan import Surroundings, survey_all
from .encoding.encode import read_caption_fields
from .encoding.fill import fill
from .engine import Engine, make_optimizer, parameter_groups
from .errors import DISK_ERRORS, InputError, RunFailed, Stopped
from .family import Family, FamilyPlugin
from .hidden import keep_hidden
from .hooks import HookCaller, blamed_on
from .hookspecs import Hooks
from .listing.index import Index
from .model import Trainable
from .ordering import ordered
from .packing import needed_but_packed
from .plugin import Part, Plugin
from .previews import captions, complaints, previews
from .progress import Progress
from .run import Run
from .rundir import WAY_ON, RunDirectory, manifest
from .trainer import Trainer
from .validation import validate

FILE_HASHES = "files.sqlite"
"""File below the cache for the hashes of files' contents."""
FILE_INDEX = "headers.sqlite"
"""File below the cache for what the headers of training data told."""
NEEDS_ALL_TOKENS = "reads hidden states and needs all tokens"
"""Why a plugin that reads a block may not go together with one that leaves tokens out of it."""
HOOK_NAMES = tuple(name for name, spec in vars(Hooks).items() if hasattr(spec, "tunesmith_spec"))


@dataclass(frozen=True)
class Assembly:
    """Who takes part in a run: the family's facts, and one instance of each plugin behind the hooks."""

    family: Family
    hooks: HookCaller


def assemble(config: Config) -> Assembly:
    """Make the plugins of a run in their order; ConfigErrors with what the family refuses and what plugins cannot work with."""
    made: dict[str, Plugin[Any]] = {}
    for name, settings in {config.family: config.model, **config.plugins}.items():
        with blamed_on(name, "__init__"):
            made[name] = config.classes[name](name, settings)
    objective = any(implementations(plugin).get("compute_loss") is False for plugin in config.classes.values())
    core = CoreAroundObjective if objective else CoreWithObjective
    made[CORE] = core(CORE, CoreSettings())
    order = ordered({name: type(plugin) for name, plugin in made.items()})
    provider = made[config.family]
    assert isinstance(provider, FamilyPlugin)
    with blamed_on(config.family, "family"):
        family = provider.family()
    problems = [
        config.problem(("plugins", name) if name in config.plugins else (name,), f"{family.name} refuses {name}: {reason}")
        for name, reason in family.refuses.items()
        if name in config.plugins or name in config.data
    ]
    for name, plugin in made.items():
        with blamed_on(name, "check"):
            problems += [config.problem(key, sentence) for key, sentence in plugin.check(config, family)]
    problems += [config.problem(key, sentence) for key, sentence in complaints(config, family, list(made.values()))]
    problems += [config.problem(("plugins", name), sentence) for name, sentence in _on_blocks(made.values(), family)]
    if not problems:
        found = chain(_unknown_blocks(made.values(), family), needed_but_packed(made.values(), config, family))
        problems = [config.problem(("plugins", name), sentence) for name, sentence in found]
    if problems:
        raise ConfigErrors(problems)
    return Assembly(family, HookCaller(made[name] for name in order))


def _on_blocks(plugins: Iterable[Plugin[Any]], family: Family) -> Iterator[tuple[str, str]]:
    """What plugins that act on blocks cannot do together: the name of one, and what to do."""
    reading: dict[str, list[int]] = {}
    narrowing: dict[str, list[range]] = {}
    for plugin in plugins:
        with blamed_on(plugin.name, "reads_blocks"):
            reading[plugin.name] = list(plugin.reads_blocks(family))
        with blamed_on(plugin.name, "narrows"):
            narrowing[plugin.name] = list(plugin.narrows(family))
    for name, block in ((name, block) for name, blocks in reading.items() for block in blocks):
        for other in (other for other, stretches in narrowing.items() if any(block in stretch[:-1] for stretch in stretches)):
            yield (
                name,
                f"{name} {NEEDS_ALL_TOKENS} of block {block}, where {other} leaves some out while training: "
                f"let {name} read another block, or {other} leave tokens out of others",
            )
    for (one, first), (other, second) in combinations(narrowing.items(), 2):
        if met := {*chain(*first)} & {*chain(*second)}:
            yield other, f"{one} and {other} both leave tokens out of block {min(met)}: let each have blocks of its own, or use one of them"


def _unknown_blocks(plugins: Iterable[Plugin[Any]], family: Family) -> Iterator[tuple[str, str]]:
    """Plugins that read blocks which the family lacks, and have not said so themselves."""
    for plugin in plugins:
        for block in plugin.reads_blocks(family):
            if block not in range(family.num_blocks):
                yield plugin.name, f"{plugin.name} reads block {block}: {family.name} has the blocks 0 to {family.num_blocks - 1}"


def remarks(config: Config, cast: Assembly) -> list[str]:
    """What to know before the run starts: of the family about plugins, and of the plugins about themselves."""
    told = [f"{name}: {caution}" for name, caution in cast.family.cautions.items() if name in config.plugins]
    for plugin in cast.hooks.plugins:
        with blamed_on(plugin.name, "remarks"):
            told += [f"{plugin.name}: {remark}" for remark in plugin.remarks(config, cast.family)]
    return told


def look_at_data(config: Config, cast: Assembly) -> list[Dataset]:
    """The datasets of a run; ConfigErrors for all of those that are not there or yield no whole batch."""
    datasets, problems = survey_data(config, cast)
    for number, dataset in datasets.items():
        try:
            dataset.require_batches()
        except InputError as error:
            problems.append(config.problem(("datasets", number), str(error)))
    if problems:
        raise ConfigErrors(problems)
    return list(datasets.values())


def survey_data(config: Config, cast: Assembly, *, makes_index: bool = True) -> tuple[dict[int, Dataset], list[Problem]]:
    """The datasets of a run by their numbers in the config, whole batches or none, and what is wrong with those that cannot be had.

    The index of their files is used where there is one, and otherwise made if `makes_index`.
    """
    plugins = {plugin.name: plugin for plugin in cast.hooks.plugins}
    place = config.run.cache_dir / FILE_INDEX
    with Index(place if makes_index or place.is_file() else None) as index:
        datasets, wrong = survey_all(config.datasets, Surroundings(cast.family, config.run, index, plugins))
    return datasets, [config.problem(("datasets", number), str(error)) for number, error in wrong]


def explain(config: Config) -> dict[str, list[tuple[str, str]]]:
    """Who takes part in each hook, in the order of running; nothing is loaded."""
    hooks = assemble(config).hooks
    return {hook: hooks.nesting(hook) for hook in HOOK_NAMES}


def run(config: Config, resume: str, progress: Progress) -> Path:
    """Carry out a run: data, cache, model, training, saving; returns the run directory.

    `resume` is `latest` (go on from the newest whole checkpoint, if there is one), `never` (start anew in a directory of
    its own) or the path of a checkpoint.
    """
    cast = assemble(config)
    engine = _engine(config)
    directory = RunDirectory(config.run.output / config.run_name)
    if resume == "never":
        directory = directory.next_free()
    datasets = look_at_data(config, cast)
    checkpoint = _checkpoint(directory, resume, config, progress)
    directory.create()
    with ExitStack() as stack:
        stack.callback(directory.close)
        file_hashes = stack.enter_context(FileHashes(config.run.cache_dir / FILE_HASHES))
        cache = stack.enter_context(_open_cache(config, progress))
        directory.describe(config.text, manifest(config.classes, config.overrides, config.text))
        this = Run(config, cast.family, cast.hooks, engine, directory, file_hashes, progress)
        try:
            with _stop_on_signals(this, progress):
                _carry_out(this, cast, datasets, checkpoint, cache)
        except Stopped:
            this.emit("end", complete=False, reason=this.stop_reason)
            progress.result(f"stopped ({this.stop_reason}) at step {this.step}; the same command goes on from there")
        except BaseException as error:
            with suppress(RunFailed):  # a full disk must not hide what went wrong
                this.emit("error", type=type(error).__name__, message=str(error))
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise RunFailed(f"cannot write {error.filename or 'to the disk'}: {error.strerror}; {WAY_ON}") from error
            raise
    return directory.path


def _engine(config: Config) -> Engine:
    try:
        engine = Engine(config.run)
        if config.run.compile:
            require_compiler(engine.device)
        return engine
    except InputError as error:
        raise ConfigErrors([config.problem(("run",), str(error))]) from error


def _open_cache(config: Config, progress: Progress) -> AbstractContextManager[Store | None]:
    if config.run.cache == "memory":
        return MemoryCache()
    return Cache(config.run.cache_dir, progress.message, config.run.cache_compression) if config.run.cache else nullcontext()


def _carry_out(run: Run, cast: Assembly, datasets: Sequence[Dataset], checkpoint: Path | None, cache: Store | None) -> None:
    """The phases: encode, load, resume, train, save."""
    config, progress = run.config, run.progress
    run.emit("start", run=run.directory.name, resumed_from=str(checkpoint) if checkpoint else None)
    for remark in remarks(config, cast):
        progress.message(remark)
    run.datasets = {dataset.name: dataset for dataset in datasets}
    fields = _fields(run)
    order = Order(datasets, config.run.seed, cached=cache is not None, accumulation=config.run.gradient_accumulation)
    _encode(run, order, fields, cache)
    for dataset in datasets:
        run.emit("data", dataset=dataset.name, funnel=dataset.funnel.lines())
        for line in dataset.funnel.lines():
            progress.message(line)
    run.total_steps, run.data_identity = total_steps(config, order), order.identity()
    trainable = load_denoiser(run)
    optimizer = make_optimizer(parameter_groups(trainable, config.optimizer, run.model.trunk()), config.optimizer)
    run.model.prepared = run.engine.prepare(trainable, optimizer)
    if checkpoint is not None:
        told = checkpoints.load(run, checkpoint, run.data_identity)
        for sentence in (*told, *checkpoints.set_newer_aside(run.directory, checkpoint)):
            progress.message(sentence)
        progress.message(f"resumed from {checkpoint} at step {run.step} of {run.total_steps}")
    elif config.validation.at_start:
        validate(run)
    started = run.step
    loader = Loader(run, order, fields, cache, on_unreadable=lambda source, reason: _tell_unreadable(run, source, reason))
    with run.finishing_steps():  # to the last checkpoint: until it is there, to end is to lose steps
        Trainer(run, loader).train()
        _finish(run, started)


def _fields(run: Run) -> list[Field]:
    """What all plugins write into batches; RunFailed if two write the same."""
    writers: dict[str, str] = {}
    fields: list[Field] = []
    for plugin in run.plugins:
        with blamed_on(plugin.name, "fields"):
            own = list(plugin.fields(run))
        for field in own:
            if field.key in writers:
                raise RunFailed(f"plugins {writers[field.key]!r} and {plugin.name!r} both write the field {field.key!r}; use one of them")
            writers[field.key] = plugin.name
            fields.append(field)
    for field in fields:
        for dataset in run.datasets.values() if field.per_sample else ():
            _check_needs(dataset, field, writers[field.key])
    return [_altered(field, writers[field.key], run.plugins) for field in fields]


def _altered(field: Field, writer: str, plugins: Iterable[Plugin[Any]]) -> Field:
    """A field whose fingerprint tells what other plugins change in how it is made."""
    told = [(plugin.name, plugin.alters(field)) for plugin in plugins if plugin.name != writer]
    changes = [f"{name} {change}" for name, change in told if change]
    return replace(field, fingerprint=" ".join([field.fingerprint, *changes])) if changes else field


def _check_needs(dataset: Dataset, field: Field, writer: str) -> None:
    """InputError if a dataset gives nothing that a field could be made of."""
    for need in field.needs:
        if need not in field.may_lack and not dataset.gives(need):
            raise InputError(
                f"dataset {dataset.name!r} is of kind {dataset.table.kind!r} and gives no {need}, "
                f"of which {writer!r} makes the field {field.key!r}; take the dataset out, or use one of another kind"
            )


def _tell_unreadable(run: Run, source: Source, reason: str) -> None:
    run.progress.message(f"{source} cannot be read ({reason}) and is replaced by another of its bucket")
    run.emit("warning", message=f"{source} cannot be read", reason=reason)


def _finish(run: Run, started: int) -> None:
    """Save where the run ended; a complete run also validates and exports `final/`."""
    progress = run.progress
    complete = run.step >= run.total_steps
    if complete and run.step == started and run.directory.final.exists():
        progress.result(
            f"this run is complete: {run.step} of {run.total_steps} steps; raise [run] steps, or start anew with --resume never"
        )
        return
    if complete and run.config.validation.at_end:
        validate(run)
    saved = checkpoints.save(run)
    run.emit("checkpoint", path=str(saved))
    if complete:
        final = checkpoints.export(run)
        run.emit("end", complete=True, final=str(final))
        progress.result(f"done: {run.step} steps; the trained weights are in {final}")
    else:
        run.emit("end", complete=False, reason=run.stop_reason)
        progress.result(
            f"stopped ({run.stop_reason}) after step {run.step} of {run.total_steps}; saved in {saved}; the same command goes on from there"
        )


def total_steps(config: Config, order: Order) -> int:
    """The length of a run in optimizer steps; epochs are rounded up to whole steps."""
    if config.run.epochs is None:
        return config.run.steps or 0
    return -(-config.run.epochs * order.batches_per_epoch // config.run.gradient_accumulation)


def _encode(run: Run, order: Order, fields: Sequence[Field], cache: Store | None) -> None:
    """Fill the cache with what it lacks and release the encoders; without a cache, encode the prompts alone and keep them."""
    run.previews = previews(run.config, run.datasets.values(), run.plugins, run.family)  # before files turn out to be unreadable
    prompts = captions(run.config, run.previews)
    if cache is not None:
        fill(run, cache, fields, order, [*order.all_captions(), *prompts], run.progress, user_of(run.config))
    run.prompt_fields = {prompt: read_caption_fields(run, cache, fields, prompt) for prompt in prompts}
    if cache is not None:
        run.release_encoders()


def load_denoiser(run: Run) -> Trainable:
    """Load what is trained, let plugins wrap it, and settle what requires a gradient."""
    model = run.load(Part.DENOISER)
    run.model = model
    keep_hidden(run)
    if run.config.run.compile and not run.is_rehearsal:
        compile_blocks(run)
    denoiser = model.denoiser
    if run.config.run.gradient_checkpointing:
        checkpoint_blocks(model, int(run.config.run.gradient_checkpointing))
    trainable = Trainable(denoiser, model.extra)
    trainable.train()
    if not any(parameter.requires_grad for parameter in trainable.parameters()):
        raise InputError("nothing would be trained: the active plugins freeze the model and add no parameters of their own")
    return trainable


def _checkpoint(directory: RunDirectory, resume: str, config: Config, progress: Progress) -> Path | None:
    """The checkpoint to go on from, or None."""
    if resume == "never":
        return None
    if resume != "latest":
        path = Path(resume)
        reason = checkpoints.damage(path) if path.is_dir() else "there is no such folder"
        if reason is not None:
            raise InputError(f"--resume {resume}: {reason}; name a folder such as runs/NAME/checkpoints/step-000100, or latest, or never")
        found: Path | None = path
    else:
        found, passed = checkpoints.latest(directory)
        for sentence in passed:
            progress.message(sentence)
    if found is not None:
        for change in checkpoints.changes(found, config):
            progress.message(change)
    return found


@contextmanager
def _stop_on_signals(run: Run, progress: Progress) -> Iterator[None]:
    """SIGINT and SIGTERM finish the step, save and end; a second SIGINT ends at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if run.stop_reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.stop(signal.Signals(number).name)
        progress.message(f"{run.stop_reason}: finishing the step and saving; Ctrl+C now stops at once")

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

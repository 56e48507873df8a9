"""A run with shapes alone: its own code on tensors that hold nothing, so that the memory it takes is known beforehand."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from .activations import saved_tensors
from .batch import AUDIO, HISTORY, LATENTS, LATENTS_STD, PIXELS, Batch, Caption, Crop, FieldShape, FieldValue, Ragged, Source, Window
from .config import Config
from .config.datasets import SampleTable
from .data.given import CONTROL, REFERENCE
from .data.hashing import FileHashes
from .encoding.encode import encode
from .engine import parameter_groups
from .family import Family, FamilyPlugin
from .hooks import HookCaller, blamed_on, hookimpl
from .live import LiveTensors, num_bytes
from .media import Report
from .objective import mix
from .plugin import NoSettings, Part, Plugin, Stage
from .progress import Progress
from .run import Run
from .rundir import RunDirectory
from .session import Assembly, load_denoiser
from .step import Step
from .trainer import with_first_frame_given
from .understudies import (
    EngineUnderstudy,
    FamilyUnderstudy,
    OptimizerRates,
    OptimizerUnderstudy,
    SwitchingUnderstudy,
    modules_move,
    takes_memory,
)
from .validation import sizes

TEXT = "a sample"
"""A caption; whatever it says, a family encodes as many tokens as there may be."""
FPS = 16.0
"""The rate of clips, which takes nothing but the sound of their time."""


@dataclass(frozen=True)
class Size:
    """The size of samples in pixels."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Phase:
    """Bytes on the device in one part of a run; `activations` is all that comes and goes on top of the rest, at the most."""

    name: str
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


class Rehearsal(Run):
    """A run whose tensors hold nothing, on the CPU, whatever the device of the real one; it is in the middle of its steps."""

    is_rehearsal = True
    live: LiveTensors
    sampling = (0, 0, 0)
    """Bytes that were there when a sample was begun, how many of them were the optimizer's, and the most until it was made."""
    unknown: list[str]
    """Encoders that make fields and are not there, for they cannot be had without their weights."""

    @classmethod
    @contextmanager
    def of(cls, config: Config, cast: Assembly, live: LiveTensors) -> Iterator[Rehearsal]:
        """A run that is rehearsed within the context, while `live` counts."""
        understudies = [FamilyUnderstudy(plugin) if isinstance(plugin, FamilyPlugin) else plugin for plugin in cast.hooks.plugins]
        hooks = HookCaller([_Sampler("sampler", NoSettings()), *understudies])
        directory = RunDirectory(config.run.output / config.run_name)
        with ExitStack() as stack:
            hashes = stack.enter_context(FileHashes(Path(stack.enter_context(TemporaryDirectory())) / "files.sqlite"))
            stack.enter_context(modules_move())
            run = cls(config, cast.family, hooks, EngineUnderstudy(config.run), directory, hashes, Progress("quiet"))
            run.live, run.unknown = live, []
            run.total_steps = config.run.steps or 2
            run.step = run.total_steps // 2
            yield run

    @property
    def state_bytes(self) -> int:
        """What the optimizer keeps on the device."""
        kept = (value for state in self.engine.optimizer_states for one in state.values() for value in one.values())
        return num_bytes(value for value in kept if takes_memory(value))

    def settled(self) -> int:
        """The bytes that are held when nothing is computed; the peak is counted from here on."""
        gc.collect()
        self.live.since_now()
        return self.live.live


class _Sampler(Plugin[NoSettings]):
    """Predicts and decodes as a validation does that makes one sample."""

    stage = Stage.LOAD

    @hookimpl
    def validate(self, run: Rehearsal, report: Report) -> None:
        """Note on the run what one sample takes."""
        there, state = run.settled(), run.state_bytes
        guidance = run.family.defaults.guidance if run.config.validation.guidance is None else run.config.validation.guidance
        decoder = run.load(Part.DECODER)
        with run.autocast():
            step = step_of(run, preview_size(run.config, run.family), 2 if guidance > 1 else 1)
            velocity = run.model.predict(step.noisy, step.sigma, step.batch)
        del step
        decoder.decode(velocity[:1])
        run.sampling = there, state, run.live.peak


def preview_size(config: Config, family: Family) -> Size:
    """The size of the largest samples of validation."""
    width, height = max(sizes(config, family), key=lambda size: size[0] * size[1])
    return Size(family.round_frames(config.validation.num_frames or family.defaults.frames), height, width)


def rehearse(config: Config, cast: Assembly, size: Size, rates: OptimizerRates) -> tuple[list[Phase], list[str]]:
    """What each phase takes with samples of this size, and the encoders that are not known here; NotRehearsed where the family is not.

    A run that keeps nothing in a cache has no phase of caching, and one that makes no samples none of validation. Of a
    trained weight the optimizer takes what `rates` says. The plugins of `cast` take part, and are of no use for a real run afterwards.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveTensors() as live, Rehearsal.of(config, cast, live) as run:
        phases = [_caching(run, size)] if config.run.cache else []
        phases.append(_training(run, size, rates))
        if makes_samples(config):
            phases.append(_validation(run))
        return [*phases, _saving(run)], run.unknown


def makes_samples(config: Config) -> bool:
    """Whether validation makes any samples, and is ever due."""
    table = config.validation
    return bool(config.prompts or table.samples or table.dataset_samples) and bool(table.every or table.at_start or table.at_end)


def _caching(run: Rehearsal, size: Size) -> Phase:
    _ = run.encoders
    weights = run.settled()
    _encode(run, size)
    phase = Phase("caching", weights, 0, 0, run.live.peak - weights)
    run.release_encoders()
    return phase


def _encode(run: Rehearsal, size: Size) -> None:
    """Encode captions, and then samples, as far as it is said what their fields are made of and by whom."""
    known, count = run.encoders.encoders, run.config.run.batch_size
    captions, inputs = (Caption(TEXT),) * count, _inputs(run.family, size)
    shapes = {key: shape for key, shape in _shapes(run, size).items() if shape.needs is not None and inputs.keys() >= {*shape.needs}}
    run.unknown = sorted({shape.encoder for shape in shapes.values() if shape.encoder is not None} - known.keys())
    shapes = {key: shape for key, shape in shapes.items() if shape.encoder not in run.unknown}
    of_captions, of_samples = ([key for key, shape in shapes.items() if bool(shape.needs) is kind] for kind in (False, True))
    if of_captions:
        encode(run, Batch(captions=captions, wanted=frozenset(of_captions)))
    if of_samples:
        needs = {need for key in of_samples for need in shapes[key].needs or ()}
        given = {need: torch.empty(count, *inputs[need]) for need in needs}
        encode(run, Batch(_sources(run, size, count), captions, given, wanted=frozenset(of_samples)))


def _inputs(family: Family, size: Size) -> dict[str, tuple[int, ...]]:
    """The shapes of all that a sample of this size may be decoded to."""
    picture: tuple[int, ...] = (3, size.height, size.width)
    clip = picture if size.frames == 1 else (3, size.frames, size.height, size.width)
    shapes = {PIXELS: clip, REFERENCE: picture, CONTROL: clip, HISTORY: (3, family.history, size.height, size.width)}
    if family.sound is not None:
        shapes[AUDIO] = (family.sound.channels, round(size.frames / FPS * family.sound.sample_rate))
    return shapes


def _shapes(run: Run, size: Size) -> dict[str, FieldShape]:
    """What is known of the fields of samples of this size."""
    shapes: dict[str, FieldShape] = {}
    for plugin in run.plugins:
        with blamed_on(plugin.name, "field_shapes"):
            shapes |= plugin.field_shapes(run.config, run.family, size.frames, size.height, size.width)
    return shapes


def _training(run: Rehearsal, size: Size, rates: OptimizerRates) -> Phase:
    trainable = load_denoiser(run)
    trained = [parameter for parameter in trainable.parameters() if parameter.requires_grad]
    groups = parameter_groups(trainable, run.config.optimizer, run.model.trunk())
    kind = SwitchingUnderstudy if any(each.switches for each in rates.values()) else OptimizerUnderstudy
    optimizer = kind(groups, rates)
    run.model.prepared = run.engine.prepare(trainable, optimizer)
    if run.config.optimizer.fused_backward_pass:
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(_let_go)  # type: ignore[no-untyped-call]
    state = run.state_bytes
    weights = run.settled() - state
    for _ in range(min(run.config.run.gradient_accumulation, 2)):  # from the second on there are gradients in forward
        step = _backward(run, size)
    gradients = num_bytes(parameter.grad for parameter in trained if parameter.grad is not None)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    run.hooks.on_step(run, step)
    return Phase("training", weights, gradients, state, run.live.peak - weights - gradients - state)


def _backward(run: Rehearsal, size: Size) -> Step:
    """One micro-batch."""
    if not run.config.run.cache:
        _encode(run, size)
    step = step_of(run, size, run.config.run.batch_size, any(one.gives_first_frame for one in _samples(run.config)))
    run.current = step
    with run.autocast(), saved_tensors(run):
        total = run.hooks.compute_loss(run, step).total
    run.engine.backward(total)
    run.current = None
    return step


def _validation(run: Rehearsal) -> Phase:
    run.model.denoiser.eval()
    weights = run.settled() - run.state_bytes
    with run.engine.weights_to_use(), torch.no_grad():
        run.hooks.validate(run, Report(run.step))
    there, state, peak = run.sampling
    weights = min(weights, there - state)  # what has left the device to make room is not counted
    return Phase("validation", weights, 0, state, peak - weights - state)


def _saving(run: Rehearsal) -> Phase:
    weights = run.settled() - run.state_bytes
    with run.engine.weights_to_use():
        for plugin in run.plugins:
            with blamed_on(plugin.name, "rehearse_saving"):
                plugin.rehearse_saving(run)
    return Phase("saving", weights, 0, run.state_bytes, run.live.peak - weights - run.state_bytes)


def step_of(run: Run, size: Size, batch_size: int, gives_first_frame: bool = False) -> Step:
    """A micro-batch of samples of this size with nothing in them, whose first frames may be given."""
    fields: dict[str, FieldValue] = {key: _value(shape, batch_size) for key, shape in _shapes(run, size).items()}
    batch = Batch(_sources(run, size, batch_size), (Caption(TEXT),) * batch_size, fields=fields)
    latents, sigma = batch.tensor(LATENTS), torch.full((batch_size,), 0.5)
    if LATENTS_STD in fields:
        latents = latents + batch.tensor(LATENTS_STD) * torch.empty_like(latents)
        fields[LATENTS] = latents
    if gives_first_frame and latents.ndim == 5 and latents.shape[2] > 1:
        sigma = with_first_frame_given(sigma, latents)
    noise = torch.empty_like(latents)
    noisy, target = mix(latents, noise, sigma)
    return Step(run.step, 0, run.step, "train", batch, sigma, noise, noisy, target)


def _samples(config: Config) -> list[SampleTable]:
    return [table for table in config.datasets if isinstance(table, SampleTable)]


def _value(shape: FieldShape, batch_size: int) -> FieldValue:
    if shape.ragged:
        return Ragged([torch.empty(shape.shape, dtype=shape.dtype) for _ in range(batch_size)])
    return torch.empty((batch_size, *shape.shape), dtype=shape.dtype)


def _sources(run: Run, size: Size, count: int) -> tuple[Source, ...]:
    """Samples that begin where there is all that a family sees of the time before them."""
    edges = (size.width, size.height)
    window = Window(run.family.history / FPS, size.frames, FPS) if size.frames > 1 else None
    return (Source("rehearsal", Path("sample"), Caption(TEXT), Crop(edges, edges, (0, 0)), window),) * count


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None

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
from .batch import LATENTS, LATENTS_STD, PIXELS, PROMPT_EMBEDS, Batch, Caption, Crop, FieldShape, FieldValue, Ragged, Source, Window
from .config import Config
from .config.datasets import SampleTable
from .data.hashing import FileHashes
from .family import Family, FamilyPlugin
from .hooks import HookCaller, hookimpl
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
    OptimizerBytes,
    OptimizerUnderstudy,
    SwitchingUnderstudy,
    modules_move,
    takes_memory,
)
from .validation import sizes

TEXT_ENCODER, AUTOENCODER = "text_encoder", "vae"
"""Encoders whose work is gone through, where an outline has them; of all others the weights count."""
TEXT = "a sample"
"""A caption; whatever it says, a family encodes as many tokens as there may be."""


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
            run.live = live
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


def rehearse(config: Config, cast: Assembly, size: Size, each: OptimizerBytes) -> list[Phase]:
    """What each phase of a run takes with samples of this size; NotRehearsed where the family cannot tell.

    A run that keeps nothing in a cache has no phase of caching, and one that makes no samples none of validation. The optimizer
    takes `each` for a trained weight. The plugins of `cast` take part, and are of no use for a real run afterwards.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveTensors() as live, Rehearsal.of(config, cast, live) as run:
        phases = [_caching(run, size)] if config.run.cache else []
        phases.append(_training(run, size, each))
        if makes_samples(config):
            phases.append(_validation(run))
        return [*phases, _saving(run)]


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


def _encode(run: Run, size: Size) -> None:
    """Encode captions, and then samples."""
    known, batch_size = run.encoders.encoders, run.config.run.batch_size
    captions = (Caption(TEXT),) * batch_size
    if TEXT_ENCODER in known:
        run.hooks.encode_batch(run, Batch(captions=captions, wanted=frozenset({PROMPT_EMBEDS})))
    if AUTOENCODER in known:
        sides = (size.height, size.width) if size.frames == 1 else (size.frames, size.height, size.width)
        pixels = {PIXELS: torch.empty(batch_size, 3, *sides)}
        run.hooks.encode_batch(run, Batch(_sources(size, batch_size), captions, pixels, wanted=frozenset({LATENTS})))


def _training(run: Rehearsal, size: Size, each: OptimizerBytes) -> Phase:
    trainable = load_denoiser(run)
    trained = [parameter for parameter in trainable.parameters() if parameter.requires_grad]
    optimizer = (SwitchingUnderstudy if each.switches else OptimizerUnderstudy)(trained, each)
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


def _backward(run: Run, size: Size) -> Step:
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
        return Phase("saving", weights, 0, run.state_bytes, run.live.peak - weights - run.state_bytes)


def step_of(run: Run, size: Size, batch_size: int, gives_first_frame: bool = False) -> Step:
    """A micro-batch of samples of this size with nothing in them, whose first frames may be given."""
    shapes: dict[str, FieldShape] = {}
    for plugin in run.plugins:
        shapes |= plugin.field_shapes(run.config, run.family, size.frames, size.height, size.width)
    fields: dict[str, FieldValue] = {key: _value(shape, batch_size) for key, shape in shapes.items()}
    batch = Batch(_sources(size, batch_size), (Caption(TEXT),) * batch_size, fields=fields)
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


def _sources(size: Size, count: int) -> tuple[Source, ...]:
    edges = (size.width, size.height)
    window = Window(0.0, size.frames, 16.0) if size.frames > 1 else None
    return (Source("rehearsal", Path("sample"), Caption(TEXT), Crop(edges, edges, (0, 0)), window),) * count


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None

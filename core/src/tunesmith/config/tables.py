"""The core's tables of the config file, each setting with its default, its bounds and its meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from ..paths import InputPath, OutputPath
from ..plugin import Settings
from ..strictness import untyped

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_STEM = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}
MOST_STEPS = 10**9
"""More steps than any run makes, and few enough for arithmetic."""
MOST_BLOCKS = 10_000
"""More blocks than any trunk has."""
_SIZE = r"[1-9]\d{0,4}x[1-9]\d{0,4}"


def _file_stem(value: str) -> str:
    if not re.fullmatch(_STEM, value):
        raise ValueError("it becomes a file name: use up to 100 letters, digits, '.', '_' and '-', and start with a letter or digit")
    if value.endswith("."):
        raise ValueError("it becomes a file name, and these cannot end with a dot everywhere")
    if value.partition(".")[0].upper() in _WINDOWS_DEVICES:
        raise ValueError("it becomes a file name, and Windows keeps this one for a device")
    return value


def _size(value: str) -> str:
    if not re.fullmatch(_SIZE, value):
        raise ValueError("should be WIDTHxHEIGHT in pixels, such as '1024x768'")
    return value


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"has {value} twice; name it once")
    return values


def _off(value: Any) -> Any:
    return None if value is False else value


FileStem: TypeAlias = Annotated[str, AfterValidator(_file_stem), WithJsonSchema({"type": "string", "pattern": f"^{_STEM}$"})]
"""A name that becomes a file or folder name, on every system: letters, digits, dot, underscore and dash."""

SizeText: TypeAlias = Annotated[str, AfterValidator(_size), WithJsonSchema({"type": "string", "pattern": f"^{_SIZE}$"})]
"""WIDTHxHEIGHT in pixels."""

OrOff: TypeAlias = Annotated[T | None, BeforeValidator(_off)]
"""A setting that `false` switches off; it is None then."""


def as_stem(text: str, fallback: str) -> str:
    """The nearest thing to `text` that is a `FileStem`; `fallback` if nothing of it is left."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100].strip("._-")
    try:
        return _file_stem(stem) if stem else fallback
    except ValueError:
        return f"{fallback}-{stem}"


def device_named(name: str) -> torch.device:
    """The device of a name that `[run] device` has, `auto` being the best that torch finds; RuntimeError if it is no device's."""
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return torch.device(name)


class RunTable(Settings):
    """`[run]`: how long, how precisely, and where to."""

    name: FileStem | None = None
    """Name of the run directory; when not given the config file's, without its ending, or its folder's if that is `config`."""
    output: OutputPath = Path("runs")
    """Folder of all run directories, relative to where `tune` is started."""
    steps: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Length of the run in optimizer steps; give steps or epochs, not both."""
    epochs: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Length of the run in passes over the data; give steps or epochs, not both."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Every random draw is a function of this seed and its position in the run."""
    batch_size: int = Field(1, ge=1, le=65_536)
    """Samples in one micro-batch of one process."""
    gradient_accumulation: int = Field(1, ge=1, le=65_536)
    """Micro-batches per optimizer step."""
    gradient_checkpointing: Literal[True, False] | Annotated[int, Field(ge=2, le=MOST_BLOCKS)] = False
    """Recompute what happens in blocks during backward: less memory, about a third more time; with a number n only in every n-th one."""
    activations: Literal["device", "cpu"] = "device"
    """Where lies what backward needs of forward: `cpu` moves it into pinned memory of the machine, and back when it is its turn."""
    compile: Literal[False, "blocks"] = False
    """`blocks` runs each transformer block through torch.compile, meant for GPUs: the first steps of every size of samples take minutes."""
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    """Autocast precision of the computation; fp16 needs a GPU."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Precision in which trained weights are kept; bf16 halves memory and loses small updates."""
    device: str = "auto"
    """`auto` takes CUDA or ROCm, then MPS, then the CPU; or a torch device such as `cuda:1`."""
    deterministic: bool = False
    """Ask torch for deterministic kernels, so that a resumed run on CUDA is bit-equal too."""
    cache: Literal[True, False, "memory"] = True
    """Encode latents and prompts once, before the trained model is loaded; `memory` keeps them there, false encodes on the fly."""
    cache_compression: Literal["auto", "zstd", "none"] = "auto"
    """How cache entries are compressed; auto takes zstd where it makes an entry at least a tenth smaller."""
    latents: Literal["mean", "sample"] = "mean"
    """Train on the autoencoder's mean, or on draws from its distribution, another one each time; for families that have one."""
    cache_dir: OutputPath = Path("cache")
    """Folder of the cache, relative to where `tune` is started; may be shared by all runs."""
    log_every: int = Field(10, ge=1, le=MOST_STEPS)
    """Steps between two reports of the loss."""

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        try:
            device_named(device)
        except RuntimeError:
            raise ValueError("this is no torch device; write auto, cpu, cuda, cuda:1 or mps") from None
        return device

    @model_validator(mode="after")
    def _one_length(self) -> RunTable:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give the length of the run as either steps or epochs" + ("" if self.steps is None else ", not both"))
        return self


class NoiseTable(Settings):
    """`[noise]`: how the noise level sigma of a training sample is drawn."""

    distribution: Literal["logit_normal", "uniform", "beta"] = "logit_normal"
    """Density of sigma before the shift."""
    scale: float = Field(1.0, gt=0)
    """logit_normal: sigma = sigmoid(scale * (n + offset)), n standard normal."""
    offset: float = 0.0
    """logit_normal: moves the density to more (positive) or less noise."""
    alpha: float = Field(2.0, gt=0)
    """beta: first shape parameter."""
    beta: float = Field(2.0, gt=0)
    """beta: second shape parameter."""
    shift: Literal["checkpoint", "none", "auto"] | Annotated[float, Field(gt=0)] = "checkpoint"
    """sigma' = s*sigma / (1 + (s-1)*sigma): the checkpoint's own s, none, a number, or `auto` by token count."""
    auto_clamp: bool = True
    """auto: outside 256 to 4096 tokens use the shift at the end of that range instead of extrapolating."""


class LossTable(Settings):
    """`[loss]`: the distance between predicted and true velocity."""

    type: Literal["l2", "huber", "smooth_l1"] = "l2"
    """huber and smooth_l1 are the pseudo-Huber forms 2c(sqrt(d^2+c^2)-c) and 2(sqrt(d^2+c^2)-c)."""
    huber_c: float = Field(0.1, gt=0)
    """The distance c at which huber and smooth_l1 turn from square to linear."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "constant"
    """How c depends on sigma: not at all, c^sigma, or by the signal-to-noise ratio."""


class OptimizerTable(Settings):
    """`[optimizer]`: what updates the weights; further keys are arguments of the optimizer itself."""

    model_config = ConfigDict(extra="allow")

    type: str = "adamw"
    """A class of torch.optim by its lower-case name, one of a library such as `adamw8bit`, or an import path."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate after warmup."""
    lr_of: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Learning rates of the modules that plugins add beside the model, by plugin, where they are not `lr`."""
    schedule: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = "constant"
    """How the learning rate falls after the warmup, reaching `end` times `lr` at the last step."""
    warmup: int = Field(0, ge=0, le=MOST_STEPS)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    end: float = Field(0.0, ge=0, le=1)
    """Share of `lr` at which a falling schedule ends."""
    cycles: int = Field(1, ge=1, le=MOST_STEPS)
    """cosine_with_restarts: number of cosines."""
    power: float = Field(1.0, gt=0)
    """polynomial: exponent."""
    clip_norm: OrOff[Annotated[float, Field(gt=0)]] = 1.0
    """Scale the gradient down to this norm; false switches it off, and so does `clip_value`."""
    clip_value: float | None = Field(None, gt=0)
    """Clip each element of the gradient to this size instead of clipping the norm."""
    fused_backward_pass: bool = False
    """Update each weight in backward, as soon as its gradient is there, and free it; needs `clip_norm = false`."""

    @model_validator(mode="after")
    def _no_norm_of_freed_gradients(self) -> OptimizerTable:
        if self.fused_backward_pass and self.clip_norm is not None:
            raise ValueError("with `fused_backward_pass` the gradients are never there together: add clip_norm = false, or a clip_value")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_clipping(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "clip_value" not in data:
            return data
        if data.get("clip_norm", False) is not False:
            raise ValueError("clip the gradient by `clip_norm` or by `clip_value`, not both")
        return {**data, "clip_norm": None}

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not the core's: arguments of the optimizer."""
        return {name: untyped(value) for name, value in (self.model_extra or {}).items()}


class CheckpointsTable(Settings):
    """`[checkpoints]`: how often the run is saved, and how many are kept."""

    every: OrOff[Annotated[int, Field(ge=1, le=MOST_STEPS)]] = 500
    """Optimizer steps between two checkpoints; false saves at the end of the run only, which is always saved."""
    keep: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Keep only the newest so many; all when not given. Surplus ones go after a new one is complete."""


class ValidationSample(Settings):
    """`[[validation.samples]]`: a picture or clip that is made from more than a prompt, as far as the family takes it."""

    name: FileStem
    """Becomes a file name."""
    prompt: str
    """The prompt."""
    reference: InputPath | None = None
    """A picture that is given, relative to the config file."""
    audio: InputPath | None = None
    """A file of sound, or a film with sound, relative to the config file."""
    control: InputPath | None = None
    """A film that guides, such as one of poses, relative to the config file."""

    @property
    def given(self) -> dict[str, Path]:
        """The files by what they are given as."""
        named = {"reference": self.reference, "audio": self.audio, "control": self.control}
        return {what: file for what, file in named.items() if file is not None}


class ValidationTable(Settings):
    """`[validation]`: pictures and clips made while training; without prompts and samples there are none."""

    every: OrOff[Annotated[int, Field(ge=1, le=MOST_STEPS)]] = None
    """Optimizer steps between two validations; only first and last when not given or false."""
    at_start: bool = True
    """Also before the first step: the untrained model, to compare with."""
    at_end: bool = True
    """Also after the last step."""
    prompts: dict[FileStem, str] = Field(default_factory=dict)
    """nickname = prompt; nicknames become file names."""
    prompts_file: InputPath | None = None
    """A JSON object of nickname: prompt, relative to the config file."""
    samples: tuple[ValidationSample, ...] = ()
    """What is made of more than a prompt, a table each."""
    dataset_samples: int = Field(0, ge=0, le=10_000)
    """So many samples of each dataset, with their captions and what is given with them, are made anew."""
    negative_prompt: str = ""
    """What guidance steers away from."""
    resolutions: Annotated[tuple[SizeText, ...], AfterValidator(_distinct)] = ()
    """Sizes as "WIDTHxHEIGHT"; the family's own when not given."""
    num_frames: int | None = Field(None, ge=1, le=100_000)
    """Frames of a clip; the family's own number when not given."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1), AfterValidator(_distinct)] = (0,)
    """One picture of each prompt and size for each seed."""
    guidance: float | None = Field(None, ge=0)
    """Classifier-free guidance; the family's own when not given."""
    steps: int | None = Field(None, ge=1, le=10_000)
    """Sampling steps; the family's own when not given."""
    scheduler: str | None = Field(None, min_length=1)
    """A diffusers scheduler class such as `DPMSolverMultistepScheduler`, or another name that the family knows; its own when not given."""

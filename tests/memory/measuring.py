"""What a run really takes: wide twins of the families, and runs whose live tensors are counted phase by phase."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn

from tests.runs.filming import moving, write_film
from tunesmith import Batch, FamilyPlugin, Modality, PipelinePlugin, Run, Source, checkpoints, session, trainer
from tunesmith.activations import saved_tensors
from tunesmith.config import load_config
from tunesmith.discovery import load_class
from tunesmith.encoding import work
from tunesmith.encoding.encode import batch_of
from tunesmith.forecast import Forecast, forecast
from tunesmith.live import LiveTensors, storages
from tunesmith.progress import Progress
from tunesmith.rehearsal import Size
from tunesmith.trainer import Trainer
from tunesmith.validation import validate

EDGE, NUM_FRAMES, NUM_SAMPLES = 96, 9, 4
WIDE: Mapping[str, Mapping[str, Any]] = {
    "sana": {
        "num_attention_heads": 30,
        "attention_head_dim": 32,
        "num_layers": 4,
        "num_cross_attention_heads": 15,
        "cross_attention_head_dim": 64,
        "cross_attention_dim": 960,
    },
    "sana_video": {
        "num_attention_heads": 27,
        "attention_head_dim": 32,
        "num_layers": 4,
        "num_cross_attention_heads": 27,
        "cross_attention_head_dim": 32,
        "cross_attention_dim": 864,
        "mlp_ratio": 3.0,
    },
    "wan_s2v": {"num_attention_heads": 14, "attention_head_dim": 64, "ffn_dim": 3584, "num_layers": 4, "audio_inject_layers": [0, 2]},
}
"""Changes to the transformer of each family's tiny twin that give it 60 M parameters or a little more."""


class Device(LiveTensors):
    """Counts what a run on the CPU has alive, but for what `Run.host_copy` sent off and what was made of that alone.

    That lies on the machine. A tensor that was made elsewhere, such as by a thread that reads, counts from when it is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.away: set[int] = set()
        self.is_bringing = False

    def send(self, tensor: Tensor) -> Tensor:
        """A copy that does not count."""
        with torch.utils._python_dispatch._disable_current_modes():
            copy = tensor.detach().clone()
        self.leave_out(copy)
        return copy

    def leave_out(self, values: Any) -> None:
        """Never count these tensors."""
        for storage in storages(values):
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.away.add(storage._cdata)
                weakref.finalize(storage, self._known.discard, storage._cdata)
                weakref.finalize(storage, self.away.discard, storage._cdata)

    def bring(self, tensor: Tensor) -> Tensor:
        """A copy that does."""
        self.is_bringing = True
        try:
            return tensor.detach().clone(memory_format=torch.contiguous_format)
        finally:
            self.is_bringing = False

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {storage._cdata for storage in storages((args, kwargs))}
        self.count((args, kwargs))
        if not given or not given <= self.away or self.is_bringing:
            return super().__torch_dispatch__(function, types, args, kwargs)
        result = function(*args, **(kwargs or {}))
        self.leave_out(result)
        return result


@dataclass(frozen=True)
class Bench:
    """Wide twins, data and an encoder of features below a folder."""

    folder: Path
    encoder: Path

    def config(self, family: str, tables: str = "", *overrides: str) -> Any:
        """Two steps of one sample, and one sample of validation at the end."""
        kind = load_class(family)
        assert issubclass(kind, FamilyPlugin)
        is_video = kind.family_type.modality is Modality.VIDEO
        folder = self.folder / family
        if not folder.exists():
            make(family, folder, kind, is_video)
        clips = f'kind = "video"\nnum_frames = {NUM_FRAMES}\nresolution_type = "pixel"' if is_video else ""
        sample = validation(family, folder)
        file = folder / "config.toml"
        file.write_text(
            f"""
[run]
steps = 2
precision = "no"
device = "cpu"
output = {str(folder / "runs")!r}
cache_dir = {str(folder / "cache")!r}

[model]
family = {family!r}
path = {str(folder / "checkpoint")!r}
{"" if family == "wan_s2v" else "complex_human_instruction = false"}

[checkpoints]
every = false

[validation]
resolutions = ["{EDGE}x{EDGE}"]
steps = 2
at_start = false
at_end = true
{f"num_frames = {NUM_FRAMES}" if is_video else ""}
{sample}

[[datasets]]
name = "samples"
path = {str(folder / "samples")!r}
resolution = {EDGE}
{clips}

{tables.replace("ENCODER", str(self.encoder))}
"""
        )
        return load_config(file, overrides)

    def forecast(self, config: Any) -> Forecast:
        """What is told beforehand."""
        cast = session.assemble(config)
        frames = NUM_FRAMES if cast.family.modality is Modality.VIDEO else 1
        return forecast(config, cast, Size(frames, EDGE, EDGE))


def validation(family: str, folder: Path) -> str:
    """What is sampled."""
    if family != "wan_s2v":
        return 'prompts = { one = "squares" }'
    return "dataset_samples = 1"


def make(family: str, folder: Path, kind: Any, is_video: bool) -> None:
    """Write the twin, with the configuration of a wide transformer and no weights for it, and samples."""
    kind.family_type.tiny(folder / "checkpoint")
    file = folder / "checkpoint" / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **WIDE[family]}))
    (folder / "samples").mkdir()
    for number in range(NUM_SAMPLES):
        frames = moving(EDGE, EDGE, NUM_FRAMES, seed=number)
        (folder / "samples" / f"{number}.txt").write_text(" ".join([f"squares {number}"] * 60))
        if is_video:
            write_film(folder / "samples" / f"{number}.mkv", frames, 200 + 100 * number)
        else:
            Image.fromarray(frames[0]).save(folder / "samples" / f"{number}.png")


def load_denoiser(plugin: PipelinePlugin[Any], component: Any, dtype: torch.dtype) -> nn.Module:
    """A wide transformer whose weights are small and of no meaning, which takes no time to make."""
    family = plugin.family()
    with init_empty_weights(include_buffers=False):
        network: nn.Module = family.denoiser_type.from_config(dict(family.configs[family.denoiser_part]))
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(weight.shape, dtype=dtype).uniform_(-0.02, 0.02, generator=generator)))
    return network.requires_grad_(False).eval()


@contextmanager
def counted(kind: type[PipelinePlugin[Any]]) -> Iterator[tuple[Device, dict[str, int]]]:
    """The peaks of each phase of a run that is carried out within the context."""
    peaks: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch, Device() as device:

        def phase(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **more: Any) -> Any:
                gc.collect()
                device.since_now()
                try:
                    return function(*given, **more)
                finally:
                    peaks[name] = device.peak

            return call

        patch.setattr(kind, "load_denoiser", load_denoiser)
        patch.setattr(PipelinePlugin, "component", component)
        patch.setattr(Run, "host_copy", lambda run, tensor: device.send(tensor))
        patch.setattr(Run, "device_copy", lambda run, tensor: device.bring(tensor))
        patch.setattr(work, "batch_of", lambda sources, inputs, wanted: sent_batch(device, sources, inputs, wanted))
        patch.setattr(trainer, "saved_tensors", lambda run: activations_of(run, device))
        patch.setattr(session, "_encode", phase("caching", session._encode))
        patch.setattr(session, "validate", phase("validation", validate))
        patch.setattr(ModelMixin, "save_pretrained", lambda *given: None)
        patch.setattr(checkpoints, "save", phase("saving", save))
        patch.setattr(checkpoints, "export", lambda run: run.directory.path)
        patch.setattr(Trainer, "train", phase("training", Trainer.train))
        yield device, peaks


def save(run: Run) -> Path:
    """As a checkpoint is saved, without the whole of the weights and the optimizer's state, which come by no other way to the disk."""
    with TemporaryDirectory() as folder, run.engine.weights_to_use():
        run.hooks.save_checkpoint(run, Path(folder))
    return run.directory.path


def sent_batch(device: Device, sources: Sequence[Source], inputs: Sequence[Mapping[str, Tensor]], wanted: Iterable[str]) -> Batch:
    """A batch to encode whose inputs were decoded and put together on the machine, and then sent to the device."""
    device.leave_out(inputs)
    batch = batch_of(sources, inputs, wanted)
    return replace(batch, inputs={key: device.bring(value) for key, value in batch.inputs.items()})


def activations_of(run: Run, device: Device) -> AbstractContextManager[Any]:
    """Where they lie: what the run would keep on the machine is sent there."""
    pretended: Any = SimpleNamespace(config=run.config, is_rehearsal=True, host_copy=device.send, device_copy=device.bring)
    return saved_tensors(pretended)


_component = PipelinePlugin.component


def component(plugin: PipelinePlugin[Any], part: str) -> Any:
    return None if part == plugin.family().denoiser_part else _component(plugin, part)


def measure(config: Any) -> dict[str, int]:
    """The peak of live tensors in each phase of a run."""
    with counted(config.classes[config.family]) as (_, peaks), Progress("quiet") as progress:
        session.run(config, "never", progress)
    return peaks

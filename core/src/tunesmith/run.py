"""What a plugin sees of the run it takes part in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import randomness
from .batch import Caption, FieldValue
from .errors import PartMissing, Stopped
from .events import Event, EventKind
from .family import Family
from .noise import SigmaSampler
from .plugin import Part, Plugin
from .step import Step

if TYPE_CHECKING:
    from .config import Config
    from .data.dataset import Dataset
    from .data.hashing import FileHashes
    from .engine import Engine
    from .hooks import HookCaller
    from .model import Model
    from .previews import Preview
    from .progress import Progress
    from .rundir import RunDirectory


class Run:
    """One run: its config, family, model, device, directory, and the step being computed.

    Two runs in one process share nothing. `step` counts finished optimizer steps; `current` is the step from before
    `compute_loss` until its backward is done, and None otherwise. `datasets` are those whose files are samples, by name;
    `previews` is what validation makes. `sigmas` draws the noise levels of training, and knows their shift. In a rehearsal
    tensors have shapes and no values: `tune plan` goes through a step so, to tell what memory it takes.
    """

    is_rehearsal = False

    def __init__(
        self,
        config: Config,
        family: Family,
        hooks: HookCaller,
        engine: Engine,
        directory: RunDirectory,
        file_hashes: FileHashes,
        progress: Progress,
    ) -> None:
        self.config = config
        self.family = family
        self.hooks = hooks
        self.engine = engine
        self.directory = directory
        self.file_hashes = file_hashes
        self.progress = progress
        self.sigmas = SigmaSampler(config.noise, family.noise_shift)
        self.datasets: Mapping[str, Dataset] = {}
        self.total_steps = 0
        self.step = 0
        self.current: Step | None = None
        self.previews: Sequence[Preview] = ()
        self.prompt_fields: dict[Caption, Mapping[str, FieldValue]] = {}
        self._model: Model | None = None
        self._encoders: Model | None = None
        self.loss_average: float | None = None
        self.data_identity = ""
        self._stop_reason: str | None = None
        self._finishes_steps = False

    def host_copy(self, tensor: Tensor) -> Tensor:
        """The tensor in the machine's memory, itself if it is there.

        In a rehearsal, where what is on the device is counted and nothing is held, it is one that takes nothing.
        """
        return tensor.new_empty(()).expand(tensor.shape) if self.is_rehearsal else tensor.to("cpu")

    def device_copy(self, tensor: Tensor) -> Tensor:
        """A tensor from the machine's memory on the device, itself if that is the CPU."""
        return tensor.contiguous() if self.is_rehearsal else tensor.to(self.device, non_blocking=True)

    @property
    def model(self) -> Model:
        """The model being trained; PartMissing before it is loaded."""
        if self._model is None:
            raise PartMissing("the model that is trained is not loaded yet; it comes after the cache is filled")
        return self._model

    @model.setter
    def model(self, model: Model) -> None:
        self._model = model

    @property
    def encoders(self) -> Model:
        """What encodes pixels and captions: loaded when first needed, so never where the cache has everything."""
        if self._encoders is None:
            self._encoders = self.load(Part.ENCODERS)
        return self._encoders

    def load(self, part: Part) -> Model:
        """Load a part of the model through its hook, and move it to the device unless a plugin has placed it."""
        model = self.hooks.load_model(self, part)
        if not model.placed:
            for module in model.modules():
                module.to(self.device)
            model.placed = True
        return model

    def release_encoders(self) -> None:
        """Give the encoders' memory back, if they were loaded."""
        if self._encoders is not None:
            self._encoders.release()
            self._encoders = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @property
    def device(self) -> torch.device:
        """Where the run computes."""
        return self.engine.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.engine.is_main

    @property
    def plugins(self) -> tuple[Plugin[Any], ...]:
        """The active plugins, from the model outwards."""
        return self.hooks.plugins

    def autocast(self) -> AbstractContextManager[None]:
        """The run's precision; enter it once per step."""
        return self.engine.autocast()

    def torch_generator(self, purpose: str, *position: int | str) -> torch.Generator:
        """A CPU generator whose draws depend on the seed, the purpose and the position alone."""
        return randomness.torch_generator(self.config.run.seed, purpose, *position)

    def numpy_generator(self, purpose: str, *position: int | str) -> np.random.Generator:
        """The same for numbers, choices and orders."""
        return randomness.numpy_generator(self.config.run.seed, purpose, *position)

    def emit(self, kind: EventKind, /, **data: Any) -> None:
        """Tell the run directory, the screen and the trackers of an event; silent on all but the main process."""
        if self.is_main:
            event = Event(kind, self.step, data)
            self.directory.append(event)
            self.progress.event(event)
            self.hooks.log(self, event)

    def fingerprint(self, *paths: Path) -> str:
        """A hash of the contents of files and folders, remembered by path, size, time and inode."""
        return self.file_hashes.combined(paths)

    def stop(self, reason: str) -> None:
        """Ask the run to finish the step, save and end; before the first step it ends at once, by raising Stopped."""
        self._stop_reason = reason
        if not self._finishes_steps:
            raise Stopped(reason)

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """While there may be steps that are not saved: a request to stop waits until they are."""
        self._finishes_steps = True
        try:
            yield
        finally:
            self._finishes_steps = False

    @property
    def stop_reason(self) -> str | None:
        """Why the run was asked to end, or None."""
        return self._stop_reason

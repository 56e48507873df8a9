"""The whole contract between the core and its plugins: seven hooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .batch import Batch
    from .events import Event
    from .loss import Loss
    from .media import Report
    from .model import Model
    from .plugin import Part
    from .run import Run
    from .step import Step

GROUP = "tunesmith"
hookspec = pluggy.HookspecMarker(GROUP)


class Hooks:
    """Namespace of the hook specifications."""

    @hookspec(firstresult=True)
    def load_model(self, run: Run, part: Part) -> Model:
        """Load one part of the model; wrap to quantise, adapt, hook or place it."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def encode_batch(self, run: Run, batch: Batch) -> Batch:
        """Fill the fields that the batch wants; wrap to add fields of your own."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def compute_loss(self, run: Run, step: Step) -> Loss:
        """Predict and compare; wrap to change `step.noisy` before, or to weigh and add to the loss after."""
        raise NotImplementedError

    @hookspec
    def on_step(self, run: Run, step: Step) -> None:
        """Act after an optimizer step; an error stops the run."""

    @hookspec
    def validate(self, run: Run, report: Report) -> None:
        """Add images, clips and metrics to the report; wrap to swap weights or to score."""

    @hookspec
    def save_checkpoint(self, run: Run, path: Path) -> None:
        """Write your files below `path`; wrap to swap weights or to upload."""

    @hookspec
    def log(self, run: Run, event: Event) -> None:
        """Observe an event of the run, on the main process only; a failure is reported and never stops the run."""

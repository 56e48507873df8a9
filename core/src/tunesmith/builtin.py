"""The core's own part in the hooks: the flow-matching objective, samples, and the trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file

from .hooks import Wrapper, hookimpl
from .loss import Loss
from .media import Report
from .model import Model
from .objective import distance
from .plugin import Part, Plugin, Settings, Stage
from .run import Run
from .step import Step
from .validation import sample_all


class CoreSettings(Settings):
    """The core has its tables at the top of the config, and no settings of its own."""


class Core(Plugin[CoreSettings]):
    """Samples the validation prompts and saves what is trained."""

    stage: ClassVar[Stage] = Stage.LOAD

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Settle, before any plugin sees the denoiser, whether it is itself trained."""
        model = yield
        if part is Part.DENOISER:
            model.trains_base = not any(plugin.stage is Stage.ADAPT for plugin in run.plugins)
            model.denoiser.requires_grad_(model.trains_base)
        return model

    @hookimpl
    def validate(self, run: Run, report: Report) -> None:
        """Make a picture or clip of every prompt, size and seed."""
        sample_all(run, report)

    @hookimpl
    def save_checkpoint(self, run: Run, path: Path) -> None:
        """Write the denoiser, if it is itself trained, and every plugin's own modules."""
        if run.model.trains_base:
            run.model.denoiser.save_pretrained(path / run.model.component)
        for name, module in run.model.extra.items():
            (path / "extra").mkdir(exist_ok=True)
            save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path / "extra" / f"{name}.safetensors")


class CoreWithObjective(Core):
    """The core where no plugin brings an objective: flow matching, with the distance of `[loss]`."""

    @hookimpl
    def compute_loss(self, run: Run, step: Step) -> Loss:
        """Predict the velocity and compare it with the target, element by element."""
        step.prediction = run.model.predict(step.noisy, step.sigma, step.batch)
        return Loss(distance(step.prediction.float(), step.target, step.sigma, run.config.loss))

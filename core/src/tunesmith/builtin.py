"""The core's own part in the hooks: the flow-matching objective, samples, and the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import save_file

from .batch import Batch, Field, FieldShape
from .config.datasets import ControlTable, MaskTable, ReferenceTable, SampleTable
from .config.optimizers import FOR_BF16
from .data.pictures import MASK
from .family import Family
from .hooks import Wrapper, hookimpl
from .loss import Loss
from .media import Report
from .model import Model
from .objective import distance, spread
from .plugin import Part, Plugin, Settings, Stage
from .run import Run
from .step import Step
from .validation import sample_all

if TYPE_CHECKING:
    from .config import Config


class CoreSettings(Settings):
    """The core has its tables at the top of the config, and no settings of its own."""


class Core(Plugin[CoreSettings]):
    """Keeps masks with their samples, samples the validation prompts and saves what is trained."""

    stage: ClassVar[Stage] = Stage.LOAD

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What the core's own tables ask for and the family cannot do."""
        if config.run.latents == "sample" and not family.latent_distribution:
            yield (
                ("run", "latents"),
                f'latents = "sample": the autoencoder of {family.name} gives no distribution to draw from; use "mean"',
            )
        if int(config.run.gradient_checkpointing) > family.num_blocks:
            yield (
                ("run", "gradient_checkpointing"),
                f"gradient_checkpointing = {config.run.gradient_checkpointing}: {family.name} has {family.num_blocks} blocks, of which "
                "only the first would be computed again; use 2 for every second one, or true for all",
            )
        if config.optimizer.fused_backward_pass and config.run.gradient_accumulation > 1:
            yield (
                ("run", "gradient_accumulation"),
                "with [optimizer] fused_backward_pass weights are updated in every backward: gradients cannot be accumulated; "
                "set gradient_accumulation = 1, or take fused_backward_pass out",
            )
        if config.optimizer.fused_backward_pass and config.run.precision == "fp16":
            yield (
                ("run", "precision"),
                "with fp16 a step is only made once all gradients are known to be finite, and [optimizer] fused_backward_pass "
                'does not wait for that; use "bf16"',
            )
        for name in config.optimizer.lr_of:
            if name not in config.plugins:
                yield ("optimizer", "lr_of", name), f"lr_of: there is no active plugin {name!r}; write its table, or take this out"
        for number, table in enumerate(config.datasets):
            if isinstance(table, ReferenceTable | ControlTable) and table.kind not in family.takes:
                yield (
                    ("datasets", number, "kind"),
                    f'kind = "{table.kind}": {family.name} takes no {table.kind} beside a caption; take this dataset out',
                )
            if isinstance(table, SampleTable) and table.gives_first_frame and not family.image_to_video:
                yield (
                    ("datasets", number, "is_i2v"),
                    f"is_i2v: {family.name} cannot be trained with the first frame given; take it out: {family.image_to_video_reason}",
                )

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """An optimizer that makes up for a loss which there is none of."""
        kind = config.optimizer.type
        if kind in FOR_BF16 and (config.run.weights == "fp32" or not config.trains_base):
            what = "the model is kept in fp32" if config.trains_base else "adapters are kept in fp32, whatever [run] weights is"
            yield f'[optimizer] type = "{kind}" gains nothing here: it makes up for what bf16 rounds away, and {what}'

    def fields(self, run: Run) -> Sequence[Field]:
        """The mask, where any dataset has masks; samples of the others count in full."""
        with_masks = any(MASK in dataset.companions for dataset in run.datasets.values())
        return (Field(MASK, "mask-1", per_sample=True, needs=(MASK,)),) if with_masks else ()

    def field_shapes(self, config: Config, family: Family, frames: int, height: int, width: int) -> dict[str, FieldShape]:
        """The mask of a sample."""
        shape = (1, height, width) if frames == 1 else (1, frames, height, width)
        return {MASK: FieldShape(shape, dtype=torch.uint8)} if any(isinstance(table, MaskTable) for table in config.datasets) else {}

    @hookimpl(wrapper=True)
    def encode_batch(self, run: Run, batch: Batch) -> Wrapper[Batch]:
        """Keep masks as they are, in steps of 1/255: uint8 [B, 1, H, W] or [B, 1, F, H, W]."""
        encoded = yield
        if encoded.wants(MASK):
            encoded.fields[MASK] = (255 * batch.inputs[MASK]).round().to(torch.uint8)
        return encoded

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Settle, before any plugin sees the denoiser, whether it is itself trained."""
        model = yield
        if part is Part.DENOISER:
            model.trains_base = run.config.trains_base
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


class CoreAroundObjective(Core):
    """The core where a plugin brings the objective."""

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run, step: Step) -> Wrapper[Loss]:
        """Set the target of samples that keep what the model knows, and take the loss off what is given."""
        aim_at_base(run, step)
        loss = yield
        weigh_given(loss, step)
        return loss


class CoreWithObjective(Core):
    """The core where no plugin brings an objective: flow matching, with the distance of `[loss]`."""

    @hookimpl
    def compute_loss(self, run: Run, step: Step) -> Loss:
        """Predict the velocity and compare it with the target, element by element."""
        aim_at_base(run, step)
        step.prediction = run.model.predict(step.noisy, step.sigma, step.batch)
        loss = Loss(distance(step.prediction.float(), step.target, step.sigma, run.config.loss))
        weigh_given(loss, step)
        return loss


def aim_at_base(run: Run, step: Step) -> None:
    """Where the samples keep what the model knows, make the target its own prediction without adapters."""
    if not step.keeps_base:
        return
    with run.model.evaluating(), run.model.without_adapters():  # what is dropped out while training is no part of what the model knows
        step.target = run.model.predict(step.noisy, step.sigma, step.batch).float()


def weigh_given(loss: Loss, step: Step) -> None:
    """Weigh with 0 what is given: where sigma differs within a sample and is 0.

    The mean stays one over all elements, so a given frame of F makes the loss of the others count (F - 1) / F.
    """
    if step.sigma.ndim > 1:
        loss.weigh("given", (spread(step.sigma, loss.elements) > 0).to(loss.elements.dtype))

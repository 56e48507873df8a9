"""Masked loss for Tunesmith: learn from the part of a picture or clip that its mask shows."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import adaptive_avg_pool3d

from tunesmith import MASK, Config, Family, Loss, Plugin, Run, Settings, Stage, Step, Wrapper, hookimpl


class MaskedSettings(Settings):
    """`[plugins.masked]`: how the masks of `[[datasets]]` with `kind = "mask"` weigh the loss."""

    type: Literal["soft", "segmentation"] = "soft"
    """soft: grey counts in part; segmentation: a latent counts in full if anything in it is not black."""
    probability: float = Field(1.0, gt=0, le=1)
    """How often a sample is masked, drawn for each sample whenever it comes; the other times it counts everywhere."""
    background: float = Field(0.0, ge=0, le=1)
    """How much black counts; with 0 nothing is learnt there."""
    normalise_by_area: bool = False
    """Divide by each sample's mean weight, so that one with a small mask teaches as much as one without a mask."""


class Masked(Plugin[MaskedSettings]):
    """Weigh the loss by the masks of the samples; only while training, so that evaluation compares whole samples."""

    stage = Stage.OBJECTIVE

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Complain where there are no masks."""
        if all(table.kind != MASK for table in config.datasets):
            yield ("plugins", self.name), f'no dataset has masks for {self.name}: add one with kind = "mask", its `path`, and `of`'

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run, step: Step) -> Wrapper[Loss]:
        """Keep the tokens of what masks show, unless a sample counts as a whole, and weigh the loss."""
        if step.mode != "train" or MASK not in step.batch.fields:
            return (yield)
        mask = step.batch.tensor(MASK).reshape(len(step.batch), 1, -1, *step.batch.tensor(MASK).shape[-2:])  # [B, 1, F, H, W]
        share = on_latents(mask, run.family.frame_spans(mask.shape[2]), step.noisy.shape[-2:]) / 255  # [B, 1, f, h, w]
        drawn = torch.rand(len(share), 1, 1, 1, 1, generator=run.torch_generator(self.name, step.position)) < self.settings.probability
        share = (share.sign() if self.settings.type == "segmentation" else share).where(drawn.to(share.device), 1)
        grid = run.model.token_grid(step.noisy)
        shown = adaptive_avg_pool3d(share, (grid.frames, grid.height, grid.width)).flatten(1) > 0.5  # [B, tokens]
        step.keep_tokens(shown & ~shown.all(dim=1, keepdim=True))
        weight = self.settings.background + (1 - self.settings.background) * share
        if self.settings.normalise_by_area:
            weight = (weight / weight.mean(dim=(1, 2, 3, 4), keepdim=True)).nan_to_num()  # a black mask stays one
        step.metrics["masked_area"] = share.mean()
        loss = yield
        loss.weigh(self.name, weight if loss.elements.ndim == 5 else weight[:, :, 0])
        return loss


def on_latents(mask: torch.Tensor, spans: Sequence[range], size: Sequence[int]) -> torch.Tensor:
    """Means of a mask [B, 1, F, H, W] over each latent's pixels and span of frames, [B, 1, spans, height, width]."""
    spans = [range(min(span.start, mask.shape[2] - 1), span.stop) for span in spans]  # a picture may be shorter than its span
    return torch.cat([adaptive_avg_pool3d(mask[:, :, span.start : span.stop].float(), (1, size[0], size[1])) for span in spans], dim=2)

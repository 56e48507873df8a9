"""The CREPA plugin: features into the cache, hidden states out of blocks, and the term that aligns them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from tunesmith import LATENTS, PIXELS, Field, FieldShape, InputError, ModelSource, Part, Plugin, Ragged, ScheduledWeight, Stage, hookimpl

from .features import Encoder, align

if TYPE_CHECKING:
    from tunesmith import Batch, Config, Family, Loss, Model, Run, Step, TokenGrid, Wrapper

FEATURES = "crepa_features"


class CrepaSettings(ScheduledWeight):
    """`[plugins.crepa]`: what is compared with what, how much it counts, and when it ends."""

    block: int | None = Setting(None, ge=0, description="Block whose output is aligned, from 0; the family's own when not given.")
    source: Literal["encoder", "backbone"] = Setting("encoder", description="With what: DINOv2's features, or a later block.")
    teacher_block: int | None = Setting(None, ge=0, description="The later block, with `source` backbone.")
    encoder: ModelSource = Setting("dinov2_vitg14", description="DINOv2: dinov2_vits14, b, l or g, also with _reg; a Hub id; or a folder.")
    image_size: int = Setting(518, ge=14, le=518, multiple_of=14, description="Edge in pixels of the square that the encoder sees.")
    frames_per_batch: int = Setting(16, ge=1, description="Frames that the encoder sees at once.")
    weight: float = Setting(0.5, gt=0, description="How much the alignment counts, beside the loss itself.")
    distance: int = Setting(1, ge=0, description="Compare with frames that are this far away, beside a frame's own; 0 is its own alone.")
    tau: float = Setting(1.0, ge=0.01, description="A neighbour at distance d weighs exp(-d / tau).")
    cumulative: bool = Setting(False, description="Compare with all frames up to `distance`, not only with those at it.")
    divide_by_frames: bool = Setting(True, description="Take the mean over frames; otherwise their sum.")
    divide_by_weights: bool = Setting(False, description="Divide each frame's sum by its weights' sum: the ends count as much.")
    similarity_threshold: float | None = Setting(None, gt=0, le=1, description="Stop once the average cosine is so high.")
    similarity_decay: float = Setting(0.99, ge=0, lt=1, description="Decay per step of that moving average.")
    recoverable: bool = Setting(False, description="Go on when the average falls again; until then comparing still costs its time.")


class Crepa(Plugin[CrepaSettings]):
    """Align one block's hidden states with what a frozen encoder sees in the same frames and their neighbours."""

    stage = Stage.OBJECTIVE

    def __init__(self, name: str, settings: CrepaSettings) -> None:
        super().__init__(name, settings)
        self.encoder = Encoder(settings.encoder, settings.image_size, settings.frames_per_batch)
        self.average: float | None = None
        self._cosines: list[Tensor] = []
        self._decoder: Model | None = None

    def reads_blocks(self, family: Family) -> Sequence[int]:
        """The block that is aligned and, where one is the teacher, the later one."""
        block = family.defaults.aligned_block if self.settings.block is None else self.settings.block
        return [block] if self.settings.teacher_block is None else [block, self.settings.teacher_block]

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Blocks that there are not or that do not go together, and an encoder that cannot be had."""
        (block, *teacher), uses_encoder = self.reads_blocks(family), self.settings.source == "encoder"
        for key, index in zip(("block", "teacher_block"), (block, *teacher), strict=False):
            if index >= family.num_blocks:
                yield ("plugins", self.name, key), f"{key} = {index}: {family.name} has the blocks 0 to {family.num_blocks - 1}"
        if bool(teacher) is uses_encoder or (teacher and teacher[0] <= block):
            yield ("plugins", self.name), f'source = "backbone" goes with a teacher_block that comes after block {block}'
        try:
            _ = uses_encoder and self.encoder.config
        except InputError as error:
            yield ("plugins", self.name, "encoder"), f"encoder = '{self.settings.encoder}': {error}"

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """What features cost."""
        if self.settings.source == "encoder":
            (width, height), frames = family.defaults.size, family.defaults.frames
            grid = family.token_grid(frames, height, width)
            room = f"{grid.tokens * self.encoder.config['hidden_size'] * 2 / 1e6:.1f} MB of the cache"
            cost = room if config.run.cache else f"the encoder's time for {grid.frames} frames in every step"
            yield f"features of a sample of {width}x{height} with {frames} frames take {cost}; those of a smaller encoder take less"

    def fields(self, run: Run) -> Sequence[Field]:
        """The features, [T, E] a sample and without rows where there are no pixels, until the weight is 0 for good."""
        family, (width, height), frames = run.family, run.family.defaults.size, run.family.defaults.frames
        if self.settings.source == "backbone":
            return ()
        tokens = f"{family.token_grid(frames, height, width)} {family.frame_spans(frames)}"  # what they stand for
        made_by = f"1 {run.fingerprint(*self.encoder.component().files)} {self.settings.image_size} {tokens}"
        return [Field(FEATURES, made_by, True, ragged=True, may_lack=(PIXELS,), is_needed=lambda: self.phase(run)[2])]

    def field_shapes(self, config: Config, family: Family, frames: int, height: int, width: int) -> dict[str, FieldShape]:
        """The features of a sample."""
        if self.settings.source == "backbone":
            return {}
        tokens = family.token_grid(frames, height, width).tokens
        return {FEATURES: FieldShape((tokens, self.encoder.config["hidden_size"]), True, torch.float16, needs=(PIXELS,))}

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Add the projector to the width of the features, drawn at the run's seed."""
        model = yield
        if part is Part.DENOISER:
            self.encoder.network = None  # loaded again where there is no cache
            width, generator = run.family.token_width, run.torch_generator("crepa.projector")
            made = self.encoder.config["hidden_size"] if self.settings.source == "encoder" else width
            linear = nn.Linear(width, made, device="meta").to_empty(device="cpu")  # which draws nothing of its own
            model.extra[self.name] = nn.Sequential(nn.LayerNorm(width), linear)
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator)
        return model

    @hookimpl(wrapper=True)
    def encode_batch(self, run: Run, batch: Batch) -> Wrapper[Batch]:
        """See the last of the frames that each frame of the token grid stands for."""
        encoded = yield
        if encoded.wants(FEATURES) and (pixels := batch.pixels) is not None:
            size = (pixels.shape[2] if pixels.ndim == 5 else 1, *pixels.shape[-2:])
            encoded.fields[FEATURES] = Ragged(self.encoder.features(pixels, run.family.last_frames(*size), run.family.token_grid(*size)))
        elif encoded.wants(FEATURES):
            encoded.fields[FEATURES] = Ragged([torch.zeros(0, 1)] * len(batch))
        return encoded

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run, step: Step) -> Wrapper[Loss]:
        """Take from the loss the weighted alignment of what the blocks gave in its pass."""
        own, (weight, compares, is_needed) = self.settings, self.phase(run)
        loss = yield
        average = {} if self.average is None else {"crepa_alignment_score_ema": self.average}
        step.metrics |= {"crepa_weight": weight, "crepa_cutoff": float(weight == 0 and (compares or not is_needed)), **average}
        if compares and step.mode == "train" and not step.keeps_base:
            with torch.set_grad_enabled(weight > 0), torch.autocast(run.device.type, enabled=False):
                score, cosine, alone = align(*self._compared(run, step), own.distance, own.tau, own.cumulative)
            score = cosine if own.divide_by_weights else score  # [B, F]
            if weight > 0:
                loss.add(self.name, -weight * (score.mean() if own.divide_by_frames else score.sum(1).mean()))
            step.metrics |= {"crepa_alignment_score": score.detach().mean(), "crepa_similarity_self": alone.mean()}
            self._cosines += [cosine.detach().mean()] if own.similarity_threshold else []
        return loss

    @hookimpl
    def on_step(self, run: Run) -> None:
        """Move the average of the cosine, which the next step goes by, and let go of networks that it does not need."""
        if self._cosines and not run.is_rehearsal:
            now, decay = float(torch.stack(self._cosines).mean()), self.settings.similarity_decay
            self.average, self._cosines = now if self.average is None else decay * self.average + (1 - decay) * now, []
        if not self.phase(run)[2] or (run.config.run.cache and self._decoder is None):
            self._decoder = self.encoder.network = None

    def phase(self, run: Run) -> tuple[float, bool, bool]:
        """The weight of the run's step, whether states are compared in it, and whether in any from there on.

        Once the average is at the threshold nothing is compared, so that it stays there, unless that is recoverable.
        """
        planned = self.settings.weight_at(run.step, run.total_steps)
        is_cut = self.average is not None and self.average >= (self.settings.similarity_threshold or math.inf)
        goes_on = self.settings.recoverable or not is_cut
        return planned * (not is_cut), planned > 0 and goes_on, (planned > 0 or run.step == 0) and goes_on

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {} if self.average is None else {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self.average = state.get("average")

    def _compared(self, run: Run, step: Step) -> tuple[Tensor, Tensor]:
        """The projected states, and what they are aligned with: [B, F, P, E] each."""
        grid = run.model.token_grid(step.noisy)
        states, *taught = (step.hidden[block][:, : grid.tokens].float() for block in self.reads_blocks(run.family))  # [B, T, D]
        wanted = taught[0].detach() if taught else self._features(run, step.batch, grid)
        shape = (len(states), grid.frames, grid.height * grid.width, -1)
        return run.model.extra[self.name](states).reshape(shape), wanted.reshape(shape)

    def _features(self, run: Run, batch: Batch, grid: TokenGrid) -> Tensor:
        """The features [B, T, E] of a batch; of latents whose pixels were not there, by way of the decoder."""
        if all(map(len, rows := batch.ragged(FEATURES).values)):
            return torch.stack(rows)
        if self._decoder is None:
            run.progress.message(f"{self.name}: {batch.sources[0].dataset} has no pixels; decoding its latents in every step is slow")
            self._decoder = run.load(Part.DECODER)
        with torch.no_grad():
            pixels, frames = self._decoder.decode(batch.tensor(LATENTS)), window.frames if (window := batch.sources[0].window) else 1
        shown = [last - frames for last in run.family.last_frames(frames, *pixels.shape[-2:])]  # from the end: the first may be left out
        return torch.stack(self.encoder.features(pixels, shown, grid))

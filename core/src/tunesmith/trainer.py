"""The training loop: it knows hooks, and no feature."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import saved_tensors
from .batch import LATENTS, LATENTS_STD, Batch, Source, moved
from .checkpoints import save
from .data.ahead import Ahead
from .data.loader import Loader
from .errors import RunFailed
from .objective import mix
from .randomness import position_seed, seed_global
from .run import Run
from .schedules import learning_rate_factor
from .step import Step
from .validation import validate

AVERAGE_DECAY = 0.98
"""Decay per step of the moving average of the loss that is shown."""


class Draws(NamedTuple):
    """What a micro-batch draws, functions of its position: noise, sigma, and noise for latents that are sampled."""

    noise: Tensor
    sigma: Tensor
    of_latents: Tensor | None

    def pinned(self) -> Draws:
        """The same in memory from which it is copied to a GPU without waiting."""
        return Draws(self.noise.pin_memory(), self.sigma.pin_memory(), None if self.of_latents is None else self.of_latents.pin_memory())


class Drawn(NamedTuple):
    """What is known of a micro-batch ahead of its step, on the CPU."""

    position: int
    batch: Batch
    draws: Draws | None
    seed: int
    """Of torch's own generators while the loss is computed."""


class Trainer:
    """Runs optimizer steps until the run is complete or asked to stop; what comes before and after them is the session's."""

    def __init__(self, run: Run, loader: Loader) -> None:
        self.run = run
        self.loader = loader
        self.progress = run.progress
        self.accumulation = run.config.run.gradient_accumulation
        tables = {name: dataset.table for name, dataset in run.datasets.items()}
        self.keeping = frozenset(name for name, table in tables.items() if table.is_regularisation and run.model.adapters)
        self.given = frozenset(name for name, table in tables.items() if table.gives_first_frame)
        self.reported = (run.step, time.perf_counter())

    def train(self) -> None:
        """All steps that are left, with validations and checkpoints when they are due."""
        run = self.run
        shown = self.progress.training(run.total_steps, run.step)
        with self.ahead() as steps, shown:
            while run.step < run.total_steps and run.stop_reason is None:
                self.one_step(steps)
                self.milestones()

    def ahead(self) -> Ahead[Drawn, Step]:
        """The micro-batches of the run from here on; what can be done ahead of them is done by a thread."""
        return Ahead(self.draw, self.prepare, self.run.step * self.accumulation, self.loader.lot, self.loader.quick)

    def one_step(self, steps: Ahead[Drawn, Step]) -> None:
        """One optimizer step: accumulate, check, update, tell."""
        run = self.run
        losses: list[Tensor] = []
        samples: list[Source] = []
        told: defaultdict[str, list[Tensor | float]] = defaultdict(list)
        run.engine.set_rate(learning_rate_factor(run.step, run.total_steps, run.config.optimizer))
        for _ in range(self.accumulation):
            step = next(steps)
            run.current = step
            try:
                with run.autocast(), saved_tensors(run):
                    loss = run.hooks.compute_loss(run, step)
                    total = loss.total
                if run.engine.updates_in_backward:
                    self.finite([total], None, step.batch.sources)
                steps.go_on()  # while the gradient is computed without Python
                run.engine.backward(total if self.accumulation == 1 else total / self.accumulation)
            finally:
                run.current = None
            losses.append(total.detach())
            for name, value in (*step.metrics.items(), *((f"loss_{name}", term.detach()) for name, term in loss.terms.items())):
                told[name].append(value)
            samples.extend(step.batch.sources)
        norm = run.engine.clip(run.config.optimizer)
        values = self.finite(losses, norm, samples)
        run.engine.update()
        run.step += 1
        run.hooks.on_step(run, step)
        self.report(step, sum(values) / len(values), norm, told)

    def finite(self, losses: list[Tensor], norm: Tensor | None, samples: Sequence[Source]) -> list[float]:
        """The losses as numbers; RunFailed that names the samples if one, or the gradient, is not finite.

        The one place in a step that waits for the device. With fp16 a gradient that is not finite is the scaler's matter.
        """
        watched = losses if norm is None or self.run.engine.scaler is not None else [*losses, norm.to(losses[0])]
        values: list[float] = torch.stack(watched).tolist()
        if all(map(math.isfinite, values)):
            return values[: len(losses)]
        what = "gradient" if all(map(math.isfinite, values[: len(losses)])) else "loss"
        is_late = what == "gradient" and self.run.engine.updates_in_backward
        outcome = "and the weights that it changed are not saved" if is_late else "and did not change the weights"
        raise RunFailed(
            f"the {what} of step {self.run.step + 1} is not finite ({', '.join(map(str, values))}), {outcome}; "
            f"its samples: {', '.join(map(str, samples))}. Look at these files, lower [optimizer] lr, or use precision bf16 instead of fp16"
        )

    def draw(self, position: int) -> Drawn:
        """The batch at a position with its draws, pinned for a GPU; without them as long as its latents are not encoded."""
        batch, seed = self.loader.ready(position), position_seed(self.run.config.run.seed, "forward", position)
        if LATENTS not in batch.fields:
            return Drawn(position, batch, None, seed)
        draws = self.draws(position, batch)
        return Drawn(position, batch, draws.pinned() if self.run.device.type == "cuda" else draws, seed)

    def draws(self, position: int, batch: Batch) -> Draws:
        """What a micro-batch draws, on the CPU; where its first frame is given, sigma is [B, 1, F, 1, 1] and 0 there."""
        run, latents = self.run, batch.tensor(LATENTS)
        noise = torch.randn(latents.shape, generator=run.torch_generator("noise", position))
        tokens = run.model.token_grid(latents).tokens
        sigma = torch.from_numpy(run.sigmas.draw(run.numpy_generator("sigma", position), len(batch), tokens)).float()
        if self.first_frame_given(batch):
            sigma = with_first_frame_given(sigma, latents)
        sampled = run.config.run.latents == "sample"
        of_latents = torch.randn(latents.shape, generator=run.torch_generator("latents", position)) if sampled else None
        return Draws(noise, sigma, of_latents)

    def first_frame_given(self, batch: Batch) -> bool:
        """Whether the first frame of these samples, which are of one dataset, is given to the model."""
        return batch.sources[0].dataset in self.given

    def prepare(self, drawn: Drawn) -> Step:
        """A micro-batch on the run's device, its noise mixed into the latents; torch's own generators are seeded for it."""
        device, position = self.run.device, drawn.position
        batch = self.loader.finished(drawn.batch)
        draws = drawn.draws or self.draws(position, batch)
        noise, sigma = moved(draws.noise, device), moved(draws.sigma, device)
        latents = batch.tensor(LATENTS).float()
        if draws.of_latents is not None:
            latents = latents + batch.tensor(LATENTS_STD).float() * moved(draws.of_latents, device)
            batch.fields[LATENTS] = latents
        noisy, target = mix(latents, noise, sigma)
        keep = self.first_frame(latents) if self.first_frame_given(batch) else None
        index, micro = divmod(position, self.accumulation)
        seed_global(drawn.seed, device)
        keeps_base = batch.sources[0].dataset in self.keeping
        return Step(index, micro, position, "train", batch, sigma, noise, noisy, target, keep, keeps_base)

    def first_frame(self, latents: Tensor) -> Tensor:
        """The tokens of the first frame, [B, tokens]."""
        grid = self.run.model.token_grid(latents)
        tokens = torch.arange(grid.tokens, device=latents.device) < grid.height * grid.width
        return tokens.expand(len(latents), -1)

    def report(self, step: Step, loss: float, norm: Tensor, told: Mapping[str, Sequence[Tensor | float]]) -> None:
        """Show the step; write an event when one is due, with the means over micro-batches of what plugins told."""
        run = self.run
        run.loss_average = loss if run.loss_average is None else AVERAGE_DECAY * run.loss_average + (1 - AVERAGE_DECAY) * loss
        rate = float(run.engine.optimizer.param_groups[0]["lr"])  # torchao's is a tensor
        due = run.step % run.config.run.log_every == 0 or run.step == run.total_steps
        memory = run.engine.peak_memory() if due else None
        self.progress.step(run.step, loss, run.loss_average, rate, memory=memory)
        if not due:
            return
        since, then = self.reported
        self.reported = (run.step, time.perf_counter())
        data = {
            "loss": loss,
            "loss_average": run.loss_average,
            "learning_rate": rate,
            "steps_per_second": (run.step - since) / max(self.reported[1] - then, 1e-9),
            "epoch": self.loader.order.epoch_of(step.position),
            "peak_memory": memory,
            "gradient_norm": float(norm),
            **{name: sum(map(float, values)) / len(values) for name, values in told.items()},
        }
        if run.engine.update_was_skipped:
            data["update_skipped"] = True
        run.emit("step", **data)

    def milestones(self) -> None:
        """Validate and save when the step says so; the last step is the session's."""
        run = self.run
        if run.step >= run.total_steps:
            return
        if run.config.validation.every and run.step % run.config.validation.every == 0:
            validate(run)
        if run.config.checkpoints.every and run.step % run.config.checkpoints.every == 0:
            run.emit("checkpoint", path=str(save(run)))


def with_first_frame_given(sigma: Tensor, latents: Tensor) -> Tensor:
    """Sigma [B] as [B, 1, F, 1, 1] for latents [B, C, F, H, W], 0 at the first frame; RunFailed if there is no other."""
    frames = latents.shape[2]
    if frames == 1:
        raise RunFailed("is_i2v: a clip of one latent frame has nothing to train once its first frame is given; use longer clips")
    spread = sigma.reshape(-1, 1, 1, 1, 1).repeat(1, 1, frames, 1, 1)
    spread[:, :, 0] = 0
    return spread

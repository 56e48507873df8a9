"""The training loop: it knows hooks, and no feature."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .batch import Batch, Source
from .checkpoints import save
from .data.loader import Ahead, Loader
from .errors import RunFailed
from .noise import SigmaSampler
from .objective import mix
from .randomness import position_seed, seed_global
from .run import Run
from .schedules import learning_rate_factor
from .step import Step
from .validation import validate

AVERAGE_DECAY = 0.98
"""Decay per step of the moving average of the loss that is shown."""


class Trainer:
    """Runs optimizer steps until the run is complete or asked to stop."""

    def __init__(self, run: Run, loader: Loader) -> None:
        self.run = run
        self.loader = loader
        self.progress = run.progress
        self.accumulation = run.config.run.gradient_accumulation
        self.sigmas = SigmaSampler(run.config.noise, run.family.noise_shift)
        self.reported = (run.step, time.perf_counter())

    def train(self) -> None:
        """All steps that are left, with validations and checkpoints when they are due."""
        run = self.run
        shown = self.progress.training(run.total_steps, run.step)
        with run.finishing_steps(), self.loader.batches(run.step * self.accumulation) as batches, shown:
            while run.step < run.total_steps and run.stop_reason is None:
                self.one_step(batches)
                self.milestones()

    def one_step(self, batches: Ahead) -> None:
        """One optimizer step: accumulate, check, update, tell."""
        run = self.run
        losses: list[Tensor] = []
        samples: list[Source] = []
        told: defaultdict[str, list[Tensor | float]] = defaultdict(list)
        for micro in range(self.accumulation):
            step = self.prepare(next(batches), micro)
            seed_global(position_seed(run.config.run.seed, "forward", step.position), run.device)
            with run.computing(step):
                with run.autocast():
                    loss = run.hooks.compute_loss(run, step)
                    total = loss.total
                batches.read_on()  # while the gradient is computed without Python
                run.engine.backward(total if self.accumulation == 1 else total / self.accumulation)
            losses.append(total.detach())
            for name, value in (*step.metrics.items(), *((f"loss_{name}", term.detach()) for name, term in loss.terms.items())):
                told[name].append(value)
            samples.extend(step.batch.sources)
        norm = run.engine.clip(run.config.optimizer)
        values = self.finite(losses, norm, samples)
        run.engine.update(learning_rate_factor(run.step, run.total_steps, run.config.optimizer))
        run.step += 1
        run.hooks.on_step(run, step)
        self.report(step, sum(values) / len(values), norm, told)

    def finite(self, losses: list[Tensor], norm: Tensor, samples: list[Source]) -> list[float]:
        """The losses as numbers; RunFailed that names the samples if one, or the gradient, is not finite.

        The one place in a step that waits for the device. With fp16 a gradient that is not finite is the scaler's matter.
        """
        watched = losses if self.run.engine.scaler is not None else [*losses, norm.to(losses[0])]
        values: list[float] = torch.stack(watched).tolist()
        if all(map(math.isfinite, values)):
            return values[: len(losses)]
        what = "gradient" if all(map(math.isfinite, values[: len(losses)])) else "loss"
        raise RunFailed(
            f"the {what} of step {self.run.step + 1} is not finite ({', '.join(map(str, values))}), and did not change the weights; "
            f"its samples: {', '.join(map(str, samples))}. Look at these files, lower [optimizer] lr, or use precision bf16 instead of fp16"
        )

    def prepare(self, batch: Batch, micro: int) -> Step:
        """Draw noise and sigma for a micro-batch, as functions of its position, and mix them into the latents."""
        run = self.run
        position = run.step * self.accumulation + micro
        latents = batch.tensor("latents").float()
        tokens = run.model.token_grid(latents).tokens
        noise = torch.randn(latents.shape, generator=run.torch_generator("noise", position)).to(run.device, non_blocking=True)
        drawn = self.sigmas.draw(run.numpy_generator("sigma", position), len(batch), tokens)
        sigma = torch.from_numpy(drawn).to(run.device, torch.float32)
        noisy, target = mix(latents, noise, sigma)
        return Step(run.step, micro, position, "train", batch, sigma, noise, noisy, target)

    def report(self, step: Step, loss: float, norm: Tensor, told: Mapping[str, Sequence[Tensor | float]]) -> None:
        """Show the step; write an event when one is due, with the means over micro-batches of what plugins told."""
        run = self.run
        run.loss_average = loss if run.loss_average is None else AVERAGE_DECAY * run.loss_average + (1 - AVERAGE_DECAY) * loss
        rate = run.engine.optimizer.param_groups[0]["lr"]
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

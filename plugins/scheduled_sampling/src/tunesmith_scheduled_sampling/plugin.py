"""The plugin: which micro-batches are rolled out, what is learnt from them, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tunesmith import LATENTS, Config, Family, Loss, Plugin, Run, Stage, Step, Wrapper, hookimpl, mix, shift_sigma, spread

from .reflexflow import drift_distance, frequency_weight
from .rollout import Path, Solver, moves, paths, rolled_out
from .settings import ReflexFlowSettings, ScheduledSamplingSettings


class ScheduledSampling(Plugin[ScheduledSamplingSettings]):
    """Start from more noise, let the model come down to the step's sigma by itself, and train on where it arrives.

    Scheduled sampling (1506.03099) for flow matching. The target is by default the one towards x0 from where the model
    is, for that is what ReflexFlow (2512.04904) finds missing where the velocity of the undisturbed path is kept.
    """

    stage = Stage.SAMPLE

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """A rollout that is longer than the sampling it stands for."""
        sampling_steps, most = self._sampling_steps(family), self.settings.max_steps
        if most > sampling_steps:
            yield (
                ("plugins", self.name, "max_steps"),
                f"max_steps = {most}: sampling has {sampling_steps} steps in all, and a rollout cannot have more; "
                f"lower `max_steps`, or raise `sampling_steps`",
            )

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """What it costs, and a ramp that the run does not see."""
        ramp, steps = self.settings.ramp, config.run.steps
        share = self.settings.probability if ramp is None else max(ramp.start, ramp.end)
        when = "" if ramp is None else f" where the ramp is highest, at probability {share:g}"
        yield (
            f"about {self.expected_cost(config, share):.2g}x per step{when}: {share:.0%} of the micro-batches are rolled out, "
            f"{self.settings.expected_steps:.2g} predictions without gradient each on average"
        )
        if ramp is not None and steps is not None and ramp.from_step + ramp.steps > steps:
            reached = f"after the {steps} steps of the run the probability is {ramp.at(steps):.2g}"
            yield f"the ramp ends at step {ramp.from_step + ramp.steps}: {reached}, not {ramp.end:g}"

    def expected_cost(self, config: Config, probability: float) -> float:
        """How many times as long a step takes: backward takes twice as long as forward, and half of that for an adapter alone."""
        every = int(config.run.gradient_checkpointing)
        forwards_a_step = 1 + (2 if config.trains_base else 1) + (1 / every if every else 0)
        terms = self.settings.reflexflow
        compared = 2 * (1 - self.settings.chances[0]) if terms is not None and terms.frequency else 0
        return 1 + probability * (self.settings.expected_steps + compared) / forwards_a_step

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run, step: Step) -> Wrapper[Loss]:
        """Put the micro-batch where the model's own steps lead, if it is one that is drawn; then add what ReflexFlow asks for."""
        ways = self._ways(run, step)
        is_rolled = any(len(way) > 1 for way in ways)
        if is_rolled:
            self._roll_out(run, step, ways)
        loss = yield
        if is_rolled and self.settings.reflexflow is not None and not step.keeps_base:
            self._compare(step, loss, self.settings.reflexflow)
        return loss

    def _ways(self, run: Run, step: Step) -> list[Path]:
        """The path of each sample, or none at all where the micro-batch is not drawn."""
        if step.mode != "train":
            return []
        if run.is_rehearsal:
            return self._longest(run, step)
        generator = run.numpy_generator(self.name, step.position)
        is_drawn = generator.random() < self.settings.probability_at(step.index)
        steps = int(generator.choice(self.settings.max_steps + 1, p=self.settings.chances)) if is_drawn else 0
        ways: list[Path] = []
        if steps:
            levels = step.sigma.flatten(1).amax(dim=1) if step.sigma.ndim > 1 else step.sigma
            # this waits for the device, at a time when it has nothing to do yet, so that no prediction is made in vain
            ways = paths(levels.tolist(), [steps] * len(levels), self._shift(run, step), self._sampling_steps(run.family))
        made = [len(way) - 1 for way in ways] or [0]
        step.metrics[f"{self.name}_share"] = sum(map(bool, made)) / len(made)
        step.metrics[f"{self.name}_steps"] = sum(made) / len(made)
        return ways

    def _longest(self, run: Run, step: Step) -> list[Path]:
        """The paths that take the most memory, where any are ever drawn."""
        ramp, count = self.settings.ramp, len(step.batch)
        if not (self.settings.probability if ramp is None else max(ramp.start, ramp.end)):
            return []
        return paths([0.5] * count, [self.settings.max_steps] * count, self._shift(run, step), self._sampling_steps(run.family))

    def _roll_out(self, run: Run, step: Step, ways: list[Path]) -> None:
        """Change the noisy latents and the target; sigma and noise stay."""
        settings, sigma, latents = self.settings, step.sigma, step.batch.tensor(LATENTS).float()
        compares = settings.reflexflow is not None and settings.reflexflow.frequency > 0 and not step.keeps_base
        solver, own = Solver(settings.solver, settings.order), step.scratch[self.name]
        with run.model.evaluating():
            if compares:
                own["clean"] = run.model.predict(step.noisy, sigma, step.batch).float()
            if run.is_rehearsal:  # a solver's numbers are not there, and take nothing
                step.noisy = step.noisy + run.model.predict(step.noisy, sigma, step.batch)
            else:
                step.noisy = rolled_out(
                    lambda noisy, level: run.model.predict(noisy, level, step.batch), latents, step.noise, step.noisy, sigma, ways, solver
                )
            if compares:
                own["biased"] = run.model.predict(step.noisy, sigma, step.batch).float()
        if settings.target == "corrected":  # (x_t - x0) / sigma, but no pull is stronger than the one from the last step of sampling
            last = float(shift_sigma(np.array(1 / self._sampling_steps(run.family)), self._shift(run, step)))
            drift = step.noisy - mix(latents, step.noise, sigma)[0]
            step.target = step.target + drift / spread(sigma, drift).clamp(min=last)

    def _compare(self, step: Step, loss: Loss, terms: ReflexFlowSettings) -> None:
        """Weigh and add as ReflexFlow does."""
        if step.prediction is None:
            raise RuntimeError("the objective left no prediction in the step")
        made, latents, own = spread(moves(step.sigma), step.noisy), step.batch.tensor(LATENTS).float(), step.scratch[self.name]
        weight = frequency_weight(own["clean"], own["biased"], made, terms.frequency) if own else step.noisy.new_ones([1] * latents.ndim)
        loss.weigh(self.name, terms.flow * weight)
        loss.add(self.name, terms.anti_drift * drift_distance(step.prediction.float(), step.noisy, latents, made))

    def _shift(self, run: Run, step: Step) -> float:
        """The shift that samples are made with: the checkpoint's own, or where it has none that of training at their size."""
        own = run.family.noise_shift
        return run.sigmas.shift(run.model.token_grid(step.noisy).tokens) if own is None else own

    def _sampling_steps(self, family: Family) -> int:
        """The steps of the sampling that a rollout is a part of."""
        return self.settings.sampling_steps or family.defaults.sampling_steps

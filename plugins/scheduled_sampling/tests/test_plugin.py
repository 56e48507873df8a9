"""Which micro-batches are rolled out, what is learnt from them, what is told and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tunesmith import Config, Family, mix
from tunesmith_scheduled_sampling import ScheduledSampling

from .conftest import LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, Bench, settings, step_at

EVERY_STEP: Mapping[str, Any] = {"probability": 1.0, "max_steps": 1, "offsets": "biased_late", "sampling_steps": 10}
"""Settings with which seven micro-batches of ten take one step."""


def a_rolled_out_position(bench: Bench, sigma: Tensor) -> int:
    """The first position at which a micro-batch is drawn."""
    return next(position for position in range(100) if bench.plugin._ways(bench.run, step_at(sigma, position)))


def test_at_probability_0_nothing_is_asked_of_the_model_and_nothing_changes(sigma: Tensor) -> None:
    bench = Bench(settings(probability=0.0, reflexflow={}))
    for position in range(20):
        step, untouched = step_at(sigma, position), step_at(sigma, position)
        loss = bench.compute(step)
        assert torch.equal(step.noisy, untouched.noisy)
        assert torch.equal(step.target, untouched.target)
        assert not loss.terms
        assert not loss.weights
        assert step.metrics == {"scheduled_sampling_share": 0.0, "scheduled_sampling_steps": 0.0}
    assert len(bench.model.asked) == 20  # the objective's own predictions


def test_as_many_micro_batches_are_rolled_out_as_the_probability_says(sigma: Tensor) -> None:
    bench = Bench(settings(probability=0.3, max_steps=3, offsets="biased_late"))
    shares, asked = [], []
    for position in range(1000):
        step = step_at(sigma, position)
        bench.compute(step)
        shares.append(step.metrics["scheduled_sampling_share"])
        asked.append(len(bench.model.asked))
    drawn = 0.3 * (1 - bench.settings.chances[0])
    assert sum(map(float, shares)) / 1000 == pytest.approx(drawn, abs=0.04)
    assert asked[-1] / 1000 - 1 == pytest.approx(0.3 * bench.settings.expected_steps, abs=0.1)


def test_draws_depend_on_seed_and_position_alone(sigma: Tensor) -> None:
    def drawn(seed: int, positions: range) -> list[int]:
        bench = Bench(settings(probability=0.5, max_steps=6), seed=seed)
        return [len((bench.plugin._ways(bench.run, step_at(sigma, position)) or [[0.0]])[0]) for position in positions]

    assert drawn(0, range(50))[30:] == drawn(0, range(30, 50))
    assert drawn(0, range(50)) != drawn(1, range(50))


def test_a_ramp_goes_from_0_to_its_end_and_stays() -> None:
    linear = settings(ramp={"end": 0.8, "steps": 10, "from_step": 5})
    assert [linear.probability_at(step) for step in (0, 5, 10, 15, 1000)] == pytest.approx([0, 0, 0.4, 0.8, 0.8])
    cosine = settings(ramp={"start": 0.6, "end": 0.2, "steps": 4, "shape": "cosine"})
    assert [cosine.probability_at(step) for step in (0, 1, 2, 4)] == pytest.approx([0.6, 0.6 - 0.4 * 0.14644661, 0.4, 0.2])


def test_a_ramp_counts_optimizer_steps(sigma: Tensor) -> None:
    bench = Bench(settings(ramp={"start": 0.0, "end": 1.0, "steps": 1, "from_step": 3}, max_steps=2))
    shares = [0.0, 0.0]
    for position in range(20):
        for after, index in enumerate((3, 4)):
            step = step_at(sigma, position, index=index)
            bench.compute(step)
            shares[after] += float(step.metrics["scheduled_sampling_share"])
    assert shares[0] == 0
    assert shares[1] > 8


def test_the_corrected_target_leads_from_where_the_model_is_to_x0(sigma: Tensor) -> None:
    bench = Bench(settings(**EVERY_STEP))
    step = step_at(sigma, a_rolled_out_position(bench, sigma))
    bench.compute(step)
    rolled = sigma >= 0.1
    level = sigma[rolled].reshape(-1, 1, 1, 1, 1)
    assert (step.noisy - step_at(sigma).noisy).abs().amax() > 1e-2
    arrived = step.noisy[rolled] - level * step.target[rolled]
    torch.testing.assert_close(arrived, LATENTS_OF_GOLDEN[rolled], rtol=0, atol=1e-5)
    assert torch.equal(step.sigma, sigma)
    assert torch.equal(step.noise, NOISE_OF_GOLDEN)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_below_the_last_sigma_of_sampling_the_pull_grows_no_more(shift: float) -> None:
    low = torch.tensor([1e-6, 1e-6, 0.0, 1e-3])
    bench = Bench(settings(**EVERY_STEP), shift=shift)
    step = step_at(low, a_rolled_out_position(bench, low))
    bench.compute(step)
    last = shift * 0.1 / (1 + (shift - 1) * 0.1)
    drift = step.noisy - mix(LATENTS_OF_GOLDEN, NOISE_OF_GOLDEN, low)[0]
    torch.testing.assert_close(step.target, NOISE_OF_GOLDEN - LATENTS_OF_GOLDEN + drift / last, rtol=0, atol=1e-5)


def test_the_constant_target_is_that_of_the_undisturbed_path(sigma: Tensor) -> None:
    bench = Bench(settings(**EVERY_STEP, target="constant"))
    step = step_at(sigma, a_rolled_out_position(bench, sigma))
    bench.compute(step)
    assert torch.equal(step.target, NOISE_OF_GOLDEN - LATENTS_OF_GOLDEN)
    assert (step.noisy - step_at(sigma).noisy).abs().amax() > 1e-2


def test_the_rollout_has_no_gradient_and_no_dropout_and_the_step_has_both(sigma: Tensor) -> None:
    bench = Bench(settings(**{**EVERY_STEP, "max_steps": 4}))
    bench.compute(step_at(sigma, a_rolled_out_position(bench, sigma)))
    *rollout, own = [(training, gradient) for _, _, training, gradient in bench.model.asked]
    assert rollout
    assert set(rollout) == {(False, False)}
    assert own == (True, True)


def test_evaluation_is_left_alone(sigma: Tensor) -> None:
    bench = Bench(settings(**EVERY_STEP, reflexflow={}))
    for position in range(20):
        step = step_at(sigma, position, mode="eval")
        loss = bench.compute(step)
        assert torch.equal(step.noisy, step_at(sigma).noisy)
        assert not step.metrics
        assert not loss.terms
    assert len(bench.model.asked) == 20


def test_reflexflow_asks_for_two_predictions_more_and_without_frequencies_for_none(sigma: Tensor) -> None:
    counts = []
    for terms in (None, {}, {"frequency": 0}):
        bench = Bench(settings(**EVERY_STEP, reflexflow=terms))
        step = step_at(sigma, a_rolled_out_position(bench, sigma))
        loss = bench.compute(step)
        counts.append(len(bench.model.asked))
        assert set(loss.terms) == set(loss.weights) == (set() if terms is None else {"scheduled_sampling"})
    assert counts == [2, 4, 2]


def test_reflexflow_asks_nothing_of_samples_that_keep_what_the_model_knows(sigma: Tensor) -> None:
    bench = Bench(settings(**EVERY_STEP, reflexflow={}))
    step = step_at(sigma, a_rolled_out_position(bench, sigma))
    step.keeps_base = True
    loss = bench.compute(step)
    assert len(bench.model.asked) == 2
    assert not loss.terms
    assert not loss.weights


def test_a_rollout_ends_at_the_level_of_what_is_made_where_a_frame_is_given() -> None:
    """The last step begins one sampling step above the sample's own sigma, though the given frame's is 0."""
    levels = torch.tensor([0.2, 0.6])
    bench = Bench(settings(**EVERY_STEP), lambda noisy, level: noisy.sin())
    step = step_at(levels, a_rolled_out_position(bench, levels))
    latents, noise = (torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    sigma = levels.reshape(2, 1, 1, 1, 1).repeat(1, 1, 3, 1, 1)
    sigma[:, :, 0] = 0
    step.batch.fields["latents"], step.noise, step.sigma = latents, noise, sigma
    step.noisy, step.target = mix(latents, noise, sigma)
    bench.compute(step)
    _, last, *_ = bench.model.asked[-2]  # before the prediction that is trained
    torch.testing.assert_close(last[:, 0, 1:, 0, 0], (levels + 1 / 10)[:, None].expand(-1, 2))
    assert not last[:, :, 0].any()


def test_reflexflow_leaves_out_what_is_given() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, 4, 3, 2, 2, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.2, 0.6]).reshape(2, 1, 1, 1, 1).repeat(1, 1, 3, 1, 1)
    sigma[:, :, 0] = 0
    bench = Bench(settings(**EVERY_STEP, reflexflow={}), lambda noisy, level: noisy.sin() + 1)
    step = step_at(sigma[:, 0, 1, 0, 0], a_rolled_out_position(bench, torch.tensor([0.2, 0.6])))
    step.batch.fields["latents"], step.noise, step.sigma = latents, noise, sigma
    step.noisy, step.target = mix(latents, noise, sigma)
    loss = bench.compute(step)
    weight = loss.weights["scheduled_sampling"]
    assert torch.equal(weight[:, :, 0], torch.ones_like(weight[:, :, 0]))
    assert (weight[:, :, 1:] - 1).abs().amin() > 0
    made = [(value[:, :, 1:]).flatten(1) for value in (step.prediction, step.noisy - latents) if value is not None]
    directions = [value / value.norm(dim=1, keepdim=True) for value in made]
    expected = 10 * (directions[0] - directions[1]).square().sum(dim=1).mean()
    torch.testing.assert_close(loss.terms["scheduled_sampling"], expected)
    assert torch.equal(step.target[:, :, 0], (noise - latents)[:, :, 0])


def config(steps: int | None = 100, checkpointing: bool = False, adapts: bool = False) -> Config:
    run = SimpleNamespace(steps=steps, gradient_checkpointing=checkpointing)
    return cast(Config, SimpleNamespace(run=run, trains_base=not adapts))


FAMILY = cast(Family, SimpleNamespace(defaults=SimpleNamespace(sampling_steps=20)))


def told(given: dict[str, Any], **facts: Any) -> list[str]:
    return list(ScheduledSampling("scheduled_sampling", settings(**given)).remarks(config(**facts), FAMILY))


@pytest.mark.parametrize(
    ("given", "facts", "cost"),
    [
        ({"probability": 0.6, "max_steps": 8}, {}, "about 1.8x per step: 60% of the micro-batches are rolled out, 4 predictions"),
        ({"probability": 0.6, "max_steps": 8}, {"checkpointing": True}, "about 1.6x per step"),
        ({"probability": 0.6, "max_steps": 8}, {"adapts": True}, "about 2.2x per step"),
        ({"probability": 0.6, "max_steps": 8, "solver": "unipc"}, {}, "about 1.8x per step"),
        ({"probability": 0.6, "max_steps": 8, "reflexflow": {}}, {}, "about 2.2x per step"),
        ({"probability": 0.6, "max_steps": 8, "reflexflow": {"frequency": 0}}, {}, "about 1.8x per step"),
        ({"ramp": {"end": 0.6, "steps": 50}, "max_steps": 8}, {}, "about 1.8x per step where the ramp is highest, at probability 0.6"),
        ({"probability": 0.0}, {}, "about 1x per step"),
    ],
)
def test_what_a_step_costs_is_told(given: dict[str, Any], facts: dict[str, Any], cost: str) -> None:
    [sentence] = told(given, **facts)
    assert sentence.startswith(cost)


def test_a_ramp_that_the_run_does_not_see_the_end_of_is_told() -> None:
    given = {"ramp": {"end": 0.8, "steps": 150, "from_step": 50}}
    assert told(given)[1:] == ["the ramp ends at step 200: after the 100 steps of the run the probability is 0.27, not 0.8"]
    assert told(given, steps=200)[1:] == told(given, steps=None)[1:] == []


def test_a_rollout_longer_than_sampling_is_refused() -> None:
    def problems(**given: Any) -> list[tuple[tuple[str | int, ...], str]]:
        return list(ScheduledSampling("scheduled_sampling", settings(**given)).check(config(), FAMILY))

    [(key, sentence)] = problems(max_steps=21)
    assert key == ("plugins", "scheduled_sampling", "max_steps")
    assert "sampling has 20 steps in all" in sentence
    assert len(problems(max_steps=11, sampling_steps=10)) == 1
    assert problems(max_steps=20) == problems(max_steps=21, sampling_steps=21) == []


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"probability": 0.5, "ramp": {"steps": 10}}, "there are both `probability` and `ramp`"),
        ({"order": 3}, "euler has none"),
        ({"solver": "heun"}, "'euler' or 'unipc'"),
        ({"offsets": "early"}, "'uniform', 'biased_early' or 'biased_late'"),
        ({"max_steps": 0}, "greater than or equal to 1"),
        ({"probability": 1.5}, "less than or equal to 1"),
        ({"ramp": {"end": 0.5}}, "Field required"),
        ({"ramp": {"steps": 10, "shape": "step"}}, "'linear' or 'cosine'"),
        ({"reflexflow": {"alpha": 1.0}}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_settings_are_mistakes_in_the_config(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        settings(**given)

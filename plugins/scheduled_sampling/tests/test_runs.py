"""Whole runs of every family: where the rollout ends, what it costs where there is none, given frames, and resume."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor

from tests.runs.conftest import LORA, Result, pictures, train, twin
from tests.runs.filming import film, films, twin_of
from tests.runs.test_resume import assert_same_run, stopped_after
from tests.runs.watching import Watched, watched
from tunesmith import Batch, Model
from tunesmith.discovery import load_class

__all__ = ["film", "films", "pictures", "train", "twin", "twin_of", "watched"]

FAMILIES = ("sana", "sana_video", "wan_s2v")
QUIET = ("validation.at_start=false", "validation.at_end=false", "run.steps=4")
Start = Callable[..., Result]


def table(**given: Any) -> str:
    return "\n".join(["[plugins.scheduled_sampling]", *(f"{key} = {value!r}" for key, value in given.items()), ""])


ALWAYS = table(probability=1.0, max_steps=3, offsets="biased_late", sampling_steps=10)
"""Every micro-batch takes one to three steps, or hardly ever none."""


@pytest.fixture
def start(train: Start, film: Start) -> Start:
    """Run a family on its kind of data."""

    def begin(family: str, name: str, extra: str = "", *overrides: str) -> Result:
        settings = (*QUIET, *overrides)
        return train(name, extra, *settings) if family == "sana" else film(family, name, extra, *settings)

    return begin


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Of every prediction of a family's model whether it was training, and whether it had a gradient."""
    seen: list[tuple[bool, bool]] = []

    def counting(predict: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def ask(self: Model, noisy: Tensor, sigma: Tensor, conditions: Batch) -> Tensor:
            seen.append((self.denoiser.training, torch.is_grad_enabled()))
            return predict(self, noisy, sigma, conditions)

        return ask

    for family in FAMILIES:
        module = __import__(load_class(family).__module__.split(".")[0])
        [kind] = [value for name, value in vars(module).items() if name.endswith("Model") and not name.endswith("3DModel")]
        monkeypatch.setattr(kind, "predict", counting(kind.predict))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_at_probability_0_a_run_is_the_one_without_the_plugin_and_asks_no_more(start: Start, asked: list[Any], family: str) -> None:
    without = start(family, "without")
    count = len(asked)
    with_plugin = start(family, "with", table(probability=0.0))
    assert with_plugin.losses == without.losses
    assert len(asked) == 2 * count
    assert set(asked) == {(True, True)}
    expected, found = without.weights(4), with_plugin.weights(4)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_from_where_it_drifts_to(start: Start, watched: list[Watched], asked: list[Any], family: str) -> None:
    result = start(family, "rolled", ALWAYS)
    shares, steps = (
        [event[f"scheduled_sampling_{what}"] for event in result.events if event["event"] == "step"] for what in ("share", "steps")
    )
    assert 0 < max(shares) <= 1
    assert asked.count((False, False)) >= sum(steps)
    assert asked.count((True, True)) == 4
    for one, count in zip(watched, steps, strict=True):
        disturbed = (one.step.noisy - undisturbed(one)).abs().amax()
        assert disturbed > 1e-3 if count else disturbed == 0
        assert one.loss.total.isfinite()
    assert any(steps)


def undisturbed(one: Watched) -> Tensor:
    """The noisy latents before any rollout, by the formula."""
    latents = one.field("latents").float()
    sigma = one.step.sigma.reshape(*one.step.sigma.shape, *[1] * (latents.ndim - one.step.sigma.ndim))
    return (1 - sigma) * latents + sigma * one.step.noise


def test_the_rollout_is_eulers_with_diffusers_own_network(train: Start, twin: Path, watched: list[Watched]) -> None:
    train("rolled", ALWAYS, *QUIET, "run.steps=1", "noise.shift='none'")
    [one] = watched
    network = SanaTransformer2DModel.from_pretrained(twin / "transformer").eval()
    embeds, mask = one.step.batch.ragged("prompt_embeds").padded()
    for row, sigma in enumerate(one.step.sigma.tolist()):
        before_shift = sigma / (3 - 2 * sigma)
        candidates = []
        for steps in (1, 2, 3):
            places = [min(before_shift + number / 10, 1.0) for number in range(steps, -1, -1)]
            levels = [3 * place / (1 + 2 * place) for place in places]
            state = (1 - levels[0]) * one.field("latents")[row : row + 1] + levels[0] * one.step.noise[row : row + 1]
            for level, following in pairwise(levels):
                timestep = torch.tensor([1000 * level])
                with torch.no_grad():
                    conditions = {"encoder_attention_mask": mask[row : row + 1], "timestep": timestep}
                    velocity = network(state, embeds[row : row + 1], **conditions).sample
                state = state + (following - level) * velocity
            candidates.append((state[0] - one.step.noisy[row]).abs().amax().item())
        assert min(candidates) < 1e-5
        assert max(candidates) > 1e-3


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_a_given_first_frame_stays(film: Start, watched: list[Watched], solver: str) -> None:
    film("sana_video", "given", ALWAYS + f"solver = '{solver}'\n", *QUIET, "datasets.0.is_i2v=true", "run.steps=3")
    rolled = [one for one in watched if (one.step.noisy - undisturbed(one)).abs().amax() > 1e-3]
    assert rolled
    for one in rolled:
        first, others = one.step.noisy[:, :, 0], one.step.noisy[:, :, 1:]
        assert torch.equal(first, one.field("latents")[:, :, 0])
        assert (others - undisturbed(one)[:, :, 1:]).abs().amax() > 1e-3
        assert not one.loss.weights["given"][:, :, 0].any()


def test_the_rollout_has_no_dropout_and_training_goes_on_with_it(train: Start, asked: list[Any]) -> None:
    train("dropping", LORA + ALWAYS, *QUIET)
    assert set(asked) == {(False, False), (True, True)}
    assert asked[-1] == (True, True)


@pytest.mark.parametrize("target", ["corrected", "constant"])
def test_what_keeps_the_models_knowledge_has_the_base_as_its_target(train: Start, twin: Path, watched: list[Watched], target: str) -> None:
    settings = (*QUIET, "datasets.0.is_regularisation=true", "datasets.0.caption_dropout=0.0", "run.steps=2")
    train("kept", LORA + ALWAYS + f"target = '{target}'\n", *settings)
    network = SanaTransformer2DModel.from_pretrained(twin / "transformer").eval()
    for one in watched:
        assert (one.step.noisy - undisturbed(one)).abs().amax() > 1e-3
        embeds, mask = one.step.batch.ragged("prompt_embeds").padded()
        with torch.no_grad():
            base = network(one.step.noisy, embeds, 1000 * one.step.sigma, encoder_attention_mask=mask).sample
        torch.testing.assert_close(one.step.target, base, rtol=0, atol=1e-5)


RESUMED = table(max_steps=3, solver="unipc") + "ramp = { start = 0.2, end = 1.0, steps = 5 }\nreflexflow = {}\n"


@pytest.mark.parametrize(
    "overrides",
    [(), ("run.gradient_accumulation=2", "run.gradient_checkpointing=true"), ("run.precision='bf16'",)],
    ids=["plain", "thrifty", "bf16"],
)
@pytest.mark.parametrize("extra", ["", LORA], ids=["full", "lora"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    train: Start, monkeypatch: pytest.MonkeyPatch, extra: str, overrides: tuple[str, ...]
) -> None:
    tables, settings = extra + RESUMED + "[checkpoints]\nevery = 2\n", (*QUIET, "run.steps=6", *overrides)
    straight = train("straight", tables, *settings)
    assert sum(event.get("scheduled_sampling_share", 0) for event in straight.events) > 0
    with stopped_after(4, monkeypatch):
        train("resumed", tables, *settings)
    assert_same_run(straight, train("resumed", tables, *settings), 6)

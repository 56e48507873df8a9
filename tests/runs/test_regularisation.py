"""`is_regularisation`: with an adapter such samples are trained to change nothing; without one they are ordinary."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SanaTransformer2DModel

from tunesmith import Loss, NoSettings, Plugin, Stage, hookimpl

from . import conftest
from .watching import Watched, watched

__all__ = ["watched"]

SETTINGS = ("validation.at_start=false", "validation.at_end=false", "datasets.0.caption_dropout=0.0")
LORA = "[plugins.lora]\nrank = 4\nalpha = 8\n"


def kept(pictures: Path, **keys: object) -> str:
    """A second dataset of the same pictures, which keeps what the model knows."""
    rows = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f"[[datasets]]\nname = 'kept'\nis_regularisation = true\npath = {str(pictures)!r}\nresolution = 64\n{rows}"


def base_prediction(twin: Path, one: Watched) -> torch.Tensor:
    """What diffusers' own network, loaded anew, says of the step."""
    network = SanaTransformer2DModel.from_pretrained(twin / "transformer").eval()
    embeds, mask = one.step.batch.ragged("prompt_embeds").padded()
    with torch.no_grad():
        prediction: torch.Tensor = network(one.step.noisy, embeds, 1000 * one.step.sigma, encoder_attention_mask=mask).sample
    return prediction


@pytest.mark.parametrize("more", [(), ("run.gradient_accumulation=2", "run.gradient_checkpointing=true")], ids=["plain", "thrifty"])
def test_the_target_is_what_the_base_predicts(train, twin, pictures, watched, more):
    overrides = (*SETTINGS, "run.steps=12", "optimizer.lr=0.01", "optimizer.warmup=0", *more)
    train("kept", LORA.replace("alpha", "dropout = 0.2\nalpha") + kept(pictures), *overrides)
    own = [one for one in watched if one.dataset == "kept"]
    others = [one for one in watched if one.dataset != "kept"]
    assert len(own) > 3
    assert len(others) > 3
    for one in own:
        torch.testing.assert_close(one.step.target, base_prediction(twin, one), atol=1e-5, rtol=0)
    assert own[-1].total > 0  # by then the adapter says something else
    for one in others:
        assert torch.equal(one.step.target, one.step.noise - one.field("latents"))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_at_the_start_there_is_nothing_to_correct(train, pictures, watched, precision):
    overrides = ("run.steps=1", f"run.precision='{precision}'", "datasets.0.is_regularisation=true")
    train("start", LORA, *SETTINGS, *overrides)
    assert [one.total for one in watched] == [0.0]


def test_the_adapter_is_trained_on_such_samples(train, pictures, watched):
    settings = (*SETTINGS, "run.steps=8", "run.precision='bf16'", "optimizer.lr=0.01", "optimizer.warmup=0")
    train("trained", LORA + kept(pictures), *settings)
    for one in watched:
        if one.dataset == "kept" and one.total > 0:
            assert one.step.prediction is not None
            assert one.step.prediction.requires_grad


def test_what_the_model_knows_is_kept_better_than_without(train, twin, pictures, tmp_path, watched):
    settings = (*SETTINGS, "run.steps=24", "optimizer.lr=0.02", "optimizer.warmup=0")
    drift = {}
    for name, extra in (("with", LORA + kept(pictures, captions="'instance'", instance_prompt="'a stone'")), ("without", LORA)):
        watched.clear()
        train(name, extra, *settings)
        model, probe = watched[-1].run.model, watched[0].step
        with torch.no_grad():
            adapted = model.predict(probe.noisy, probe.sigma, probe.batch)
            with model.without_adapters():
                base = model.predict(probe.noisy, probe.sigma, probe.batch)
        drift[name] = float((adapted - base).square().mean())
    assert drift["with"] < 0.8 * drift["without"]


def test_in_a_full_fine_tune_the_samples_are_ordinary(train, watched):
    train("full", "", *SETTINGS, "run.steps=3", "datasets.0.is_regularisation=true")
    for one in watched:
        assert torch.equal(one.step.target, one.step.noise - one.field("latents"))
    plain = train("plain", "", *SETTINGS, "run.steps=3")
    assert plain.losses == {step: pytest.approx(one.total, rel=1e-6) for step, one in enumerate(watched[:3], 1)}


class Objective(Plugin[NoSettings]):
    """An objective of somebody else's."""

    stage = Stage.OBJECTIVE

    @hookimpl
    def compute_loss(self, run, step):
        step.prediction = run.model.predict(step.noisy, step.sigma, step.batch)
        return Loss((step.prediction - step.target).abs())


def test_it_holds_for_the_objective_of_a_plugin_too(train, twin, pictures, watched, monkeypatch):
    def with_objective(config):
        return replace(config, plugins={**config.plugins, "own": NoSettings()}, classes={**config.classes, "own": Objective})

    monkeypatch.setattr(conftest, "prepared", with_objective)
    train("own", LORA, *SETTINGS, "run.steps=1", "datasets.0.is_regularisation=true")
    assert [one.total for one in watched] == [0.0]
    torch.testing.assert_close(watched[0].step.target, base_prediction(twin, watched[0]), atol=1e-5, rtol=0)

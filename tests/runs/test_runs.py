"""Whole runs of the tiny twin: what they leave behind, and how they end."""

import json
import math

import pytest
import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from PIL import Image

from tunesmith import InputError, Part, RunFailed
from tunesmith.engine import Engine
from tunesmith.hooks import HookCaller

from .conftest import LORA


def test_a_full_run_leaves_events_checkpoint_pictures_and_loadable_weights(train, twin):
    result = train("full", "[checkpoints]\nevery = 3\n")
    assert sorted(result.losses) == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(loss) for loss in result.losses.values())
    kinds = [event["event"] for event in result.events]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert {"data", "step", "validation", "checkpoint"} <= set(kinds)
    assert sorted(path.name for path in (result.path / "checkpoints").iterdir()) == ["step-000003", "step-000006"]
    before, after = result.pictures(0), result.pictures(6)
    assert list(before) == list(after) == ["red-64x64-seed0.png"]
    assert before != after
    base = SanaTransformer2DModel.from_pretrained(twin / "transformer")
    trained = SanaTransformer2DModel.from_pretrained(result.path / "final" / "transformer")
    moved = [name for name, value in trained.state_dict().items() if not torch.equal(value, base.state_dict()[name])]
    assert len(moved) > 0.9 * len(base.state_dict())
    pipeline = SanaPipeline.from_pretrained(twin, transformer=trained)
    assert pipeline.transformer is trained


def test_training_lowers_the_loss_on_data_seen_again_and_again(train):
    result = train("long", "", "run.steps=150", "validation.at_start=false", "validation.at_end=false", "optimizer.lr=3e-3")
    losses = [loss for _, loss in sorted(result.losses.items())]
    assert sum(losses[-30:]) < 0.85 * sum(losses[:30])


def test_a_picture_carries_its_whole_recipe(train):
    result = train("recipe", LORA, "run.steps=1")
    picture = Image.open(result.path / "validation" / "step-000001" / "red-64x64-seed0.png")
    recipe = json.loads(picture.info["tunesmith"])
    assert recipe["prompt"] == "a red square"
    assert (recipe["seed"], recipe["step"], recipe["run"]) == (0, 1, "recipe")
    assert {"negative_prompt", "guidance", "sampling_steps", "width", "height", "scheduler", "tunesmith"} <= set(recipe)
    assert recipe["config"]["plugins"]["lora"]["rank"] == 4


def test_a_lora_run_saves_the_adapter_and_never_the_base(train, twin):
    result = train("lora", LORA)
    names = sorted(path.name for path in (result.path / "final").rglob("*") if path.is_file())
    assert names == ["manifest.json", "pytorch_lora_weights.safetensors"]
    pipeline = SanaPipeline.from_pretrained(twin)
    pipeline.load_lora_weights(result.path / "final")
    assert pipeline.get_active_adapters()


@pytest.mark.parametrize("extra", ["", LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    "override",
    [
        "run.precision='bf16'",
        "run.weights='bf16'",
        "run.gradient_checkpointing=true",
        "run.cache=false",
        "optimizer.type='sgd'",
        "optimizer.clip_value=0.1",
        "loss.type='huber'",
        "noise.distribution='beta'",
    ],
)
def test_every_engine_setting_trains(train, extra, override):
    result = train("variant", extra, "run.steps=2", "validation.at_start=false", "validation.at_end=false", override)
    assert len(result.losses) == 2
    assert all(math.isfinite(loss) for loss in result.losses.values())


def test_gradient_checkpointing_changes_no_loss(train):
    plain = train("plain", "", "validation.at_start=false", "validation.at_end=false")
    recomputed = train("recomputed", "", "validation.at_start=false", "validation.at_end=false", "run.gradient_checkpointing=true")
    assert plain.losses == pytest.approx(recomputed.losses, rel=1e-6)


def test_caching_and_encoding_on_the_fly_give_the_same_losses(train):
    settings = ("datasets.0.crop='center'", "datasets.0.variants=1", "validation.at_start=false", "validation.at_end=false")
    assert train("cached", "", *settings).losses == pytest.approx(train("direct", "", *settings, "run.cache=false").losses, rel=1e-5)


def test_a_step_with_accumulation_is_the_bare_computation_on_its_micro_batches(train, twin, monkeypatch):
    steps, gradients = [], []
    compute, update = HookCaller.compute_loss, Engine.update

    def watched(self, run, step):
        steps.append(step)
        return compute(self, run, step)

    def caught(self):
        gradients.append([parameter.grad.clone() for parameter in self._parameters])
        update(self)

    monkeypatch.setattr(HookCaller, "compute_loss", watched)
    monkeypatch.setattr(Engine, "update", caught)
    settings = ("validation.at_start=false", "validation.at_end=false", "run.steps=1", "optimizer.clip_norm=1e9")
    result = train("accumulated", "", *settings, "run.gradient_accumulation=3")
    bare = SanaTransformer2DModel.from_pretrained(twin / "transformer")
    losses = []
    for step in steps:
        embeds, mask = step.batch.ragged("prompt_embeds").padded()
        sigma, latents = step.sigma[:, None, None, None], step.batch.tensor("latents")
        noisy = (1 - sigma) * latents + sigma * step.noise
        (velocity,) = bare(noisy, embeds, step.sigma * 1000, encoder_attention_mask=mask, return_dict=False)
        losses.append((velocity - (step.noise - latents)).square().mean())
    whole = torch.stack(losses).mean()
    whole.backward()
    assert len(steps) == 3
    assert result.losses[1] == pytest.approx(whole.item(), rel=1e-6)
    for found, parameter in zip(gradients[0], bare.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-7)


def test_a_non_finite_loss_stops_before_the_update_and_names_the_samples(train, monkeypatch):
    from tunesmith_sana import SanaModel

    predict = SanaModel.predict
    calls = []

    def poisoned(self, noisy, sigma, conditions):
        calls.append(1)
        prediction = predict(self, noisy, sigma, conditions)
        return prediction * math.nan if len(calls) == 3 else prediction

    monkeypatch.setattr(SanaModel, "predict", poisoned)
    with pytest.raises(RunFailed, match=r"loss of step 3 is not finite.*\.png") as caught:
        train("poisoned", "[checkpoints]\nevery = 2\n", "validation.at_start=false")
    assert "did not change the weights" in str(caught.value)


def test_a_dataset_without_a_whole_batch_stops_with_the_funnel_and_the_remedies(train):
    with pytest.raises(InputError, match=r"(?s)found.*8.*repeats = .*oversubscribe = true"):
        train("starved", "", "run.batch_size=20")


def test_a_complete_run_started_again_says_so_and_changes_nothing(train):
    first = train("twice", LORA, "run.steps=2")
    before = {path: path.stat().st_mtime_ns for path in (first.path / "checkpoints").rglob("*")}
    second = train("twice", LORA, "run.steps=2")
    assert second.path == first.path
    assert before == {path: path.stat().st_mtime_ns for path in (second.path / "checkpoints").rglob("*")}


def test_never_starts_anew_in_a_directory_of_its_own(train):
    first = train("anew", LORA, "run.steps=1")
    second = train("anew", LORA, "run.steps=1", resume="never")
    assert (first.path.name, second.path.name) == ("anew", "anew-2")
    assert first.losses == second.losses


def test_the_second_run_encodes_nothing_and_loads_no_encoder(train, monkeypatch):
    train("first", LORA, "run.steps=1", "validation.at_start=false", "validation.at_end=false")
    asked = []
    load = HookCaller.load_model

    def watched(self, run, part):
        asked.append(part)
        return load(self, run, part)

    monkeypatch.setattr(HookCaller, "load_model", watched)
    train("second", LORA, "run.steps=1", "validation.at_start=false", "validation.at_end=false")
    assert asked == [Part.DENOISER]


def test_a_gradient_that_is_not_finite_stops_before_the_update_even_without_clipping(train, monkeypatch):
    compute = HookCaller.compute_loss

    def poisoned(self, run, step):
        loss = compute(self, run, step)
        first = next(parameter for parameter in run.model.denoiser.parameters() if parameter.requires_grad)
        loss.add("poison", (first * 0).sum().sqrt() if step.index == 1 else first.sum() * 0)  # the root of 0 has no slope
        return loss

    monkeypatch.setattr(HookCaller, "compute_loss", poisoned)
    with pytest.raises(RunFailed, match=r"the gradient of step 2 is not finite"):
        train("steep", LORA, "validation.at_start=false", "optimizer.clip_norm=false")


def test_what_plugins_add_to_the_loss_is_in_the_events(train, monkeypatch):
    compute = HookCaller.compute_loss

    def adds(self, run, step):
        loss = compute(self, run, step)
        loss.add("tilt", torch.tensor(float(step.micro)))
        step.metrics["micro"] = step.micro
        return loss

    monkeypatch.setattr(HookCaller, "compute_loss", adds)
    result = train("told", LORA, "run.steps=1", "run.gradient_accumulation=3", "validation.at_start=false", "validation.at_end=false")
    [event] = [event for event in result.events if event["event"] == "step"]
    assert (event["loss_tilt"], event["micro"]) == (1.0, 1.0)

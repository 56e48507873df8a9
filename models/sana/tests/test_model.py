"""Prediction in every precision, sampling, and the map of the trunk."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from diffusers.models.attention_processor import Attention, SanaLinearAttnProcessor2_0
from torch import Tensor

from tunesmith import Batch, Caption, InputError, Media, Part, Ragged, Run, TokenGrid
from tunesmith.sampling import SCHEDULERS
from tunesmith_sana import SanaModel
from tunesmith_sana.attention import FullPrecisionLinearAttention

from .conftest import encoded, load, noise, plugin, request

SIGMA = torch.tensor([0.2, 0.7])


@pytest.fixture(scope="module")
def embeds(twin: Path, make_run: Callable[..., Run]) -> Ragged:
    return encoded(twin, make_run(), Caption("a red circle"), Caption("", negative=True))


@pytest.fixture
def model(twin: Path, make_run: Callable[..., Run]) -> SanaModel:
    return load(plugin(twin), make_run(), Part.DENOISER)


def conditions(embeds: Ragged) -> Batch:
    return Batch(fields={"prompt_embeds": embeds})


def test_sigma_may_broadcast_but_not_vary_within_a_sample(model: SanaModel, embeds: Ragged) -> None:
    noisy = noise(2, 4, 8, 8)
    plain = model.predict(noisy, SIGMA, conditions(embeds))
    assert torch.equal(plain, model.predict(noisy, SIGMA.reshape(2, 1, 1, 1), conditions(embeds)))
    assert not torch.allclose(plain, model.predict(noisy, SIGMA.flip(0), conditions(embeds)))
    with pytest.raises(ValueError, match="one sigma a sample"):
        model.predict(noisy, torch.rand(2, 1, 8, 8), conditions(embeds))


def test_padding_for_a_longer_neighbour_does_not_change_a_prediction(model: SanaModel, embeds: Ragged) -> None:
    noisy = noise(2, 4, 8, 12)
    together = model.predict(noisy, SIGMA, conditions(embeds))
    alone = model.predict(noisy[1:], SIGMA[1:], conditions(Ragged(embeds.values[1:])))
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-6)


def test_the_prepared_module_is_the_one_that_is_called(model: SanaModel, embeds: Ragged) -> None:
    calls: list[tuple[Any, ...]] = []

    def prepared(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return model.denoiser(*args, **kwargs)

    model.prepared = prepared
    model.predict(noise(2, 4, 8, 8), SIGMA, conditions(embeds))
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_half_precision_predicts_and_trains_close_to_full(
    twin: Path, make_run: Callable[..., Run], embeds: Ragged, dtype: torch.dtype, weights: str
) -> None:
    full = load(plugin(twin), make_run(), Part.DENOISER).predict(noise(2, 4, 8, 8), SIGMA, conditions(embeds))
    half = load(plugin(twin), make_run(weights), Part.DENOISER)
    half.denoiser.requires_grad_(True)
    with torch.autocast("cpu", dtype=dtype):
        prediction = half.predict(noise(2, 4, 8, 8), SIGMA, conditions(embeds))
    assert prediction.dtype == torch.float32
    torch.testing.assert_close(prediction, full, rtol=0.1, atol=0.1)
    prediction.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in half.denoiser.parameters())


def test_bf16_weights_work_without_autocast(twin: Path, make_run: Callable[..., Run], embeds: Ragged) -> None:
    full = load(plugin(twin), make_run(), Part.DENOISER).predict(noise(2, 4, 8, 8), SIGMA, conditions(embeds))
    half = load(plugin(twin), make_run("bf16"), Part.DENOISER).predict(noise(2, 4, 8, 8), SIGMA, conditions(embeds))
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.1)


def attention(processor: Any) -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=16, heads=2, dim_head=8, bias=False, out_bias=True, processor=processor)


def test_linear_attention_equals_diffusers_in_full_precision() -> None:
    tokens = noise(2, 30, 16)
    ours, theirs = (attention(processor)(tokens) for processor in (FullPrecisionLinearAttention(), SanaLinearAttnProcessor2_0()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_linear_attention_over_many_tokens_stays_in_the_range_of_fp16() -> None:
    tokens = 30 * noise(1, 4096, 16)
    reference = attention(SanaLinearAttnProcessor2_0())(tokens)
    with torch.autocast("cpu", dtype=torch.float16):
        ours = attention(FullPrecisionLinearAttention())(tokens)
        theirs = attention(SanaLinearAttnProcessor2_0())(tokens)
    assert not theirs.isfinite().all()  # why ours is there
    torch.testing.assert_close(ours.float(), reference, rtol=0.02, atol=0.05)


def test_gradient_checkpointing_changes_no_gradient(model: SanaModel, embeds: Ragged) -> None:
    def gradients() -> list[Tensor]:
        loss = model.predict(noise(2, 4, 8, 8), SIGMA, conditions(embeds)).square().mean()
        return list(torch.autograd.grad(loss, list(model.denoiser.parameters())))

    model.denoiser.requires_grad_(True).train()
    plain = gradients()
    model.denoiser.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


# Sampling


@pytest.fixture
def paint(twin: Path, make_run: Callable[..., Run], embeds: Ragged) -> Callable[..., Media]:
    sana, run = plugin(twin, revision="v1"), make_run()
    decoder = load(sana, run, Part.DECODER)
    denoiser = load(sana, run, Part.DENOISER).denoiser

    def make(**changes: Any) -> Media:
        positive, negative = (Ragged([row]) for row in embeds.values)
        return decoder.sample(decoder.pipeline(denoiser), request(positive, negative, **changes))

    return make


def test_a_picture_depends_on_the_seed_alone(paint: Callable[..., Media]) -> None:
    first, again, other = (np.asarray(paint(seed=seed).content) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_named_scheduler_follows_the_flow_at_the_checkpoints_shift(paint: Callable[..., Media], name: str) -> None:
    media = paint(scheduler=name, steps=24)
    assert media.recipe["scheduler"] == name
    config = media.recipe["scheduler_config"]
    assert config["shift" if name.startswith("FlowMatch") else "flow_shift"] == 3.0
    difference = np.asarray(media.content).astype(float) - np.asarray(paint(steps=24).content)
    assert np.abs(difference).mean() < 16  # of 255: another solver of the same equation


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "SASolverScheduler", "AutoencoderDC", "Nonsense"])
def test_a_scheduler_that_cannot_be_had_is_told(paint: Callable[..., Media], name: str) -> None:
    with pytest.raises(InputError, match=rf"cannot be sampled with '{name}'.*allowed are FlowMatchEulerDiscreteScheduler"):
        paint(scheduler=name)


def test_a_size_that_cannot_be_sampled_is_told(paint: Callable[..., Media]) -> None:
    with pytest.raises(InputError, match="use 64x96"):
        paint(width=72, height=88)


def test_the_recipe_says_all_and_is_json(paint: Callable[..., Media], twin: Path) -> None:
    recipe = json.loads(json.dumps(paint().recipe, allow_nan=False))
    known = {"prompt": "a", "negative_prompt": "b", "width": 64, "height": 64, "guidance": 4.5, "sampling_steps": 4, "seed": 7}
    assert known.items() <= recipe.items()
    assert (recipe["model"], recipe["revision"], recipe["scheduler"]) == (str(twin), "v1", "DPMSolverMultistepScheduler")
    assert recipe["complex_human_instruction"].endswith("User Prompt: ")


def test_the_autoencoder_keeps_its_precision_under_autocast(paint: Callable[..., Media], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    decode = SanaModel.decode

    def watched(self: SanaModel, latents: Tensor) -> Tensor:
        pixels = decode(self, latents)
        seen.append(self.encoder("vae").decoder.conv_out(torch.zeros(1, 8, 2, 2)).dtype)
        return pixels

    monkeypatch.setattr(SanaModel, "decode", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        paint()
    assert seen == [torch.float32]


# The trunk


def test_the_trunk_names_the_blocks_that_the_transformer_runs(model: SanaModel) -> None:
    for entry in model.trunk():
        assert model.denoiser.get_submodule(entry.name) is entry.module
        assert {entry.hidden, *entry.grid, *entry.per_token} <= set(inspect.signature(entry.module.forward).parameters)
        inside = set(entry.module.modules())
        assert {*entry.attention, *entry.feed_forward, *(one.module for one in entry.convolutions)} <= inside
    assert [entry.module for entry in model.blocks] == list(model.denoiser.transformer_blocks)
    assert model.token_grid(noise(1, 4, 8, 12)) == TokenGrid(1, 8, 12)


def test_convolutions_name_everything_that_mixes_tokens_on_the_grid(model: SanaModel) -> None:
    for entry in model.trunk():
        mixing = [part for part in entry.module.modules() if isinstance(part, torch.nn.Conv2d) and part.kernel_size != (1, 1)]
        assert mixing == [one.module for one in entry.convolutions]


def test_the_twin_is_not_degenerate(pipe: SanaPipeline, model: SanaModel, embeds: Ragged) -> None:
    assert isinstance(pipe.transformer, SanaTransformer2DModel)
    noisy = noise(1, 4, 8, 8).repeat(2, 1, 1, 1)
    one, other = model.predict(noisy, SIGMA[:1].repeat(2), conditions(embeds))
    assert one.std() > 0.05
    assert (one - other).abs().max() > 1e-3  # the prompt matters

"""Prediction in every precision and size, attention, sampling, and tokens that are left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_sana_video import SanaLinearAttnProcessor3_0
from torch import Tensor

from tunesmith import Caption, InputError, Media, Part, Ragged, Run
from tunesmith_sana_video import SanaVideoModel
from tunesmith_sana_video.attention import FullPrecisionLinearAttention
from tunesmith_tread import Routed, bypass

from .conftest import conditions, encoded, load, noise, plugin, request, uniform

SIGMA = torch.tensor([0.2, 0.7])


@pytest.fixture(scope="module")
def embeds(twin: Path, make_run: Callable[..., Run]) -> Ragged:
    return encoded(twin, make_run(), Caption("a red circle"), Caption("", negative=True))


@pytest.fixture
def model(twin: Path, make_run: Callable[..., Run]) -> SanaVideoModel:
    return load(plugin(twin), make_run(), Part.DENOISER)


def by_frame(sigma: Tensor, frames: int) -> Tensor:
    """The same noise level for every frame, as [B, 1, F, 1, 1]."""
    return sigma.reshape(-1, 1, 1, 1, 1).repeat(1, 1, frames, 1, 1)


def test_the_same_level_for_every_token_is_one_level_for_the_sample(model: SanaVideoModel, embeds: Ragged) -> None:
    noisy = noise(2, 4, 3, 8, 12)
    with torch.no_grad():
        plain = model.predict(noisy, SIGMA, conditions(embeds))
        spread = model.predict(noisy, by_frame(SIGMA, 3), conditions(embeds))
        by_latent = model.predict(noisy, by_frame(SIGMA, 3).repeat(1, 1, 1, 8, 12), conditions(embeds))
    torch.testing.assert_close(spread, plain, rtol=0, atol=1e-5)
    assert torch.equal(spread, by_latent)


def test_a_frame_without_noise_is_told_apart(model: SanaVideoModel, embeds: Ragged) -> None:
    noisy, given = noise(2, 4, 3, 8, 12), by_frame(SIGMA, 3)
    given[:, :, 0] = 0
    with torch.no_grad():
        assert not torch.allclose(
            model.predict(noisy, given, conditions(embeds)), model.predict(noisy, SIGMA, conditions(embeds)), atol=1e-3
        )


@pytest.mark.parametrize("size", [(1, 2, 2), (1, 10, 14), (5, 6, 22), (2, 14, 6)], ids=str)
def test_a_sample_of_any_size_is_predicted_as_if_it_were_alone(model: SanaVideoModel, embeds: Ragged, size: tuple[int, ...]) -> None:
    noisy = noise(2, 4, *size)
    with torch.no_grad():
        together = model.predict(noisy, SIGMA, conditions(embeds))
        alone = model.predict(noisy[1:], SIGMA[1:], conditions(Ragged(embeds.values[1:])))
    assert together.shape == noisy.shape
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_half_precision_predicts_and_trains_close_to_full(
    twin: Path, make_run: Callable[..., Run], embeds: Ragged, dtype: torch.dtype, weights: str
) -> None:
    full = load(plugin(twin), make_run(), Part.DENOISER).predict(noise(2, 4, 3, 8, 8), SIGMA, conditions(embeds))
    half = load(plugin(twin), make_run(weights), Part.DENOISER)
    half.denoiser.requires_grad_(True)
    with torch.autocast("cpu", dtype=dtype):
        prediction = half.predict(noise(2, 4, 3, 8, 8), SIGMA, conditions(embeds))
    assert prediction.dtype == torch.float32
    torch.testing.assert_close(prediction, full, rtol=0.1, atol=0.1)
    prediction.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in half.denoiser.parameters())


def attention(processor: Any) -> Attention:
    torch.manual_seed(0)
    norm = "rms_norm_across_heads"
    return Attention(query_dim=16, heads=2, kv_heads=2, dim_head=8, bias=False, out_bias=True, qk_norm=norm, processor=processor)


def rotary(tokens: int) -> tuple[Tensor, Tensor]:
    angles = noise(1, tokens, 1, 4, seed=9).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def test_linear_attention_equals_diffusers_in_full_precision() -> None:
    tokens, tables = noise(2, 30, 16), rotary(30)
    theirs = attention(SanaLinearAttnProcessor3_0())(tokens, rotary_emb=tables)
    assert torch.equal(attention(FullPrecisionLinearAttention())(tokens, rotary_emb=tables), theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=True):
        half = attention(FullPrecisionLinearAttention())(tokens, rotary_emb=tables)
    torch.testing.assert_close(half.float(), theirs, rtol=0.02, atol=0.02)


def test_linear_attention_over_a_clips_tokens_stays_in_the_range_of_fp16() -> None:
    tokens, tables = noise(1, 16384, 16), rotary(16384)
    exact = attention(SanaLinearAttnProcessor3_0())
    with torch.no_grad():
        for processed in (exact, ours := attention(FullPrecisionLinearAttention()), theirs := attention(SanaLinearAttnProcessor3_0())):
            processed.to_v.weight.mul_(30)
        reference = exact(tokens, rotary_emb=tables)
        with torch.autocast("cpu", dtype=torch.float16):
            kept, lost = ours(tokens, rotary_emb=tables), theirs(tokens, rotary_emb=tables)
    torch.testing.assert_close(kept.float(), reference, rtol=0.02, atol=0.05)
    assert not torch.allclose(lost.float(), reference, rtol=0.02, atol=0.05)  # why ours is there


def test_tokens_left_out_take_their_own_noise_levels_with_them(model: SanaVideoModel, embeds: Ragged) -> None:
    noisy, sigma = noise(2, 4, 3, 8, 12), by_frame(SIGMA, 3)
    sigma[:, :, 0] = 0
    grid = model.token_grid(noisy)
    every = torch.arange(grid.tokens).repeat(2, 1)
    whole, halved = Routed(grid, lambda hidden: every), Routed(grid, lambda hidden: every[:, ::2])
    with torch.no_grad():
        plain = model.predict(noisy, sigma, conditions(embeds))
        with bypass(model.blocks[1:-1], lambda: whole):
            all_kept = model.predict(noisy, sigma, conditions(embeds))
        with bypass(model.blocks[1:-1], lambda: halved):
            half = model.predict(noisy, sigma, conditions(embeds))
    torch.testing.assert_close(all_kept, plain, rtol=0, atol=2e-6)
    assert half.isfinite().all()
    assert not torch.allclose(half, plain)


def test_convolutions_name_everything_that_mixes_tokens_on_the_grid(model: SanaVideoModel) -> None:
    for entry in model.trunk():
        mixing = [part for part in entry.module.modules() if isinstance(part, torch.nn.Conv2d) and part.kernel_size != (1, 1)]
        assert mixing == [one.module for one in entry.convolutions]


@pytest.fixture
def film(twin: Path, make_run: Callable[..., Run], embeds: Ragged) -> Callable[..., Media]:
    family, run = plugin(twin, revision="v1", motion_score=12), make_run()
    decoder = load(family, run, Part.DECODER)
    denoiser = load(family, run, Part.DENOISER).denoiser

    def make(**changes: Any) -> Media:
        positive, negative = (Ragged([row]) for row in embeds.values)
        return decoder.sample(decoder.pipeline(denoiser), request(positive, negative, **changes))

    return make


def test_a_size_that_cannot_be_sampled_is_told(film: Callable[..., Media]) -> None:
    with pytest.raises(InputError, match="use 64x96"):
        film(width=72, height=88)


def test_the_recipe_says_all_and_is_json(film: Callable[..., Media], twin: Path) -> None:
    recipe = json.loads(json.dumps(film(given={"reference": uniform(3, 40, 90)}).recipe, allow_nan=False))
    known = {"width": 96, "height": 64, "frames": 9, "fps": 16.0, "guidance": 6.0, "sampling_steps": 4, "seed": 7, "motion_score": 12}
    assert known.items() <= recipe.items()
    assert (recipe["model"], recipe["revision"], recipe["scheduler"]) == (str(twin), "v1", "DPMSolverMultistepScheduler")
    assert recipe["given"] == ["reference"]
    assert recipe["complex_human_instruction"].endswith("User Prompt: ")


def test_a_reference_of_another_shape_is_cut_and_not_squeezed(film: Callable[..., Media]) -> None:
    """A picture with stripes at its sides, which are cut off, is the picture without them."""
    inner = uniform(3, 64, 96, seed=3)
    wide = torch.cat([torch.ones(3, 64, 40), inner, -torch.ones(3, 64, 40)], dim=2)
    first, second = (film(given={"reference": one}).content.frames.numpy().astype(int) for one in (inner, wide))
    assert np.abs(first - second).max() <= 1


def test_the_autoencoder_keeps_its_precision_under_autocast(film: Callable[..., Media], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    for name in ("_encode", "_decode"):
        own = getattr(AutoencoderKLWan, name)

        def watched(self: Any, *args: Any, own: Any = own, **kwargs: Any) -> Any:
            seen.append(torch.is_autocast_enabled("cpu"))
            return own(self, *args, **kwargs)

        monkeypatch.setattr(AutoencoderKLWan, name, watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        film(given={"reference": uniform(3, 64, 96)})
    assert seen == [False, False]

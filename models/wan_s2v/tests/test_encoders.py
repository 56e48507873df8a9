"""Texts and pixels to what the network takes, against diffusers' own pipeline and the reference's constants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from tunesmith import InputError
from tunesmith_wan_s2v.prompts import NEGATIVE_PROMPT, clean, encode_texts
from tunesmith_wan_s2v.vae import decode, encode

from .components import random, text_encoder, tokenizer, vae
from .goldens import difference, facts

TEXTS = ["A man   speaks\n to us", "", "&amp;lt;b&gt; schÃ¶n", "x" * 40]


def test_texts_are_embedded_as_by_the_pipeline_of_wan() -> None:
    tokens, encoder = tokenizer(), text_encoder()
    with torch.no_grad():
        embeds, mask = encode_texts(tokens, encoder, TEXTS, max_tokens=32)
        expected, _ = WanPipeline(tokens, encoder, vae=None, scheduler=None).encode_prompt(TEXTS, None, False, max_sequence_length=32)
    assert difference(embeds, expected) < 1e-6
    assert mask.sum(dim=1).tolist() == [min(len(ids), 32) for ids in tokens([clean(text) for text in TEXTS]).input_ids]
    assert (embeds.abs().sum(dim=-1) > 0).equal(mask.bool())


@pytest.mark.parametrize("text", [*TEXTS, "  Voil\u00c3\u00a0 &#39;x&#39;\t", "\u3000a\u00a0b"])
def test_texts_are_cleaned_as_by_the_pipeline_of_wan(text: str) -> None:
    assert clean(text) == prompt_clean(text)


def test_the_negative_prompt_is_wans_own() -> None:
    assert facts("constants")["text"]["negative_prompt_s2v"] == NEGATIVE_PROMPT


def test_latents_are_the_posterior_mean_normalised_with_wans_constants() -> None:
    known = facts("constants")["vae"]
    mean, deviation = (torch.tensor(known[name]).view(1, 16, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    network, pixels = vae(), random(2, 3, 9, 16, 32).tanh()
    with torch.no_grad():
        latents = encode(network, pixels)
        assert latents.shape == (2, 16, 3, 2, 4)
        assert difference(latents, (network.encode(pixels).latent_dist.mean - mean) / deviation) < 1e-5
        assert difference(decode(network, latents), network.decode(latents * deviation + mean).sample.clamp(-1, 1)) < 1e-5


def test_the_first_latent_of_a_clip_is_that_of_its_first_frame() -> None:
    network, pixels = vae(), random(1, 3, 9, 16, 16).tanh()
    with torch.no_grad():
        assert difference(encode(network, pixels)[:, :, :1], encode(network, pixels[:, :, :1])) < 1e-5


@pytest.mark.parametrize("frames", [2, 4, 8])
def test_frames_that_would_be_left_out_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"{frames} frames cannot be encoded"):
        encode(vae(), random(1, 3, frames, 16, 16))


def test_the_vae_keeps_its_precision_within_autocast() -> None:
    network, pixels = vae(), random(1, 3, 5, 16, 16).tanh()
    with torch.no_grad():
        latents = encode(network, pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(encode(network, pixels), latents)
            assert decode(network, latents).dtype == torch.float32
        assert encode(vae().to(torch.bfloat16), pixels).dtype == torch.float32


@pytest.mark.parametrize(("name", "values"), [("latents_mean", None), ("latents_std", None), ("latents_std", [1.0] * 4)])
def test_a_vae_without_its_mean_or_deviation_is_refused(name: str, values: Any) -> None:
    network: AutoencoderKLWan = vae()
    network.register_to_config(**{name: values})
    for work in (lambda: encode(network, random(1, 3, 1, 16, 16)), lambda: decode(network, random(1, 16, 1, 2, 2))):
        with pytest.raises(InputError, match=f"no {name} of 16 numbers"):
            work()

"""What we compute is what diffusers' own pipeline computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline

from tunesmith import Batch, Caption, Part, Ragged, Run

from .conftest import CAPTIONS, encoded, load, noise, plugin, request, uniform

PROMPT, NEGATIVE = "A red circle on white", "Blurry, ugly"


def own_instruction() -> list[str]:
    """The pipeline's instruction as its function holds it, past any wrapper."""
    call = SanaPipeline.__call__
    while hasattr(call, "__wrapped__"):
        call = call.__wrapped__
    found: list[str] = next(value for value in call.__defaults__ if isinstance(value, list) and "User Prompt: " in value)
    return found


def test_latents_are_the_autoencoders_times_the_scaling_factor(twin: Path, pipe: SanaPipeline, make_run: Callable[..., Run]) -> None:
    sana, run = plugin(twin), make_run()
    load(sana, run, Part.ENCODERS)
    image = uniform(2, 3, 64, 96)
    batch = sana.encode_batch(run, Batch(captions=CAPTIONS[:2], inputs={"pixels": image}, wanted=frozenset({"latents"})))
    with torch.no_grad():
        expected = pipe.vae.encode(image).latent * 0.41407
    assert batch.tensor("latents").shape == (2, *sana.family().latent_shape(1, 64, 96))
    torch.testing.assert_close(batch.tensor("latents"), expected, rtol=0, atol=1e-6)


def test_decoding_divides_by_the_scaling_factor(twin: Path, pipe: SanaPipeline, make_run: Callable[..., Run]) -> None:
    latents = noise(1, 4, 8, 12)
    with torch.no_grad():
        ours = load(plugin(twin), make_run(), Part.DECODER).decode(latents)
        expected = pipe.vae.decode(latents / 0.41407).sample.clamp(-1, 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "lines"), [(True, own_instruction()), (False, None), ("Draw it: ", ["Draw it: "])], ids=["own", "off", "text"]
)
def test_positive_embeddings_are_the_pipelines_without_its_padding(
    twin: Path, pipe: SanaPipeline, make_run: Callable[..., Run], setting: bool | str, lines: list[str] | None
) -> None:
    ours = encoded(twin, make_run(), Caption(PROMPT), complex_human_instruction=setting).values[0]
    with torch.no_grad():
        embeds, mask, *_ = pipe.encode_prompt(PROMPT, False, device=torch.device("cpu"), complex_human_instruction=lines)
    assert embeds.shape[1] == 300
    assert len(ours) == int(mask.sum())
    assert not mask[0, len(ours) :].any()
    torch.testing.assert_close(ours, embeds[0, : len(ours)], rtol=0, atol=1e-5)


def test_the_instruction_changes_positive_prompts_and_no_negative_ones(twin: Path, make_run: Callable[..., Run]) -> None:
    with_it = encoded(twin, make_run(), *CAPTIONS)
    without = encoded(twin, make_run(), *CAPTIONS, complex_human_instruction=False)
    assert with_it.values[0].shape[0] == without.values[0].shape[0] + 1  # the instruction's last token is seen as well
    assert not torch.allclose(with_it.values[0][2:], without.values[0][1:])
    for row in (2, 3):
        assert torch.equal(with_it.values[row], without.values[row])


def test_negative_embeddings_are_the_pipelines(twin: Path, pipe: SanaPipeline, make_run: Callable[..., Run]) -> None:
    ours = encoded(twin, make_run(), Caption(NEGATIVE, negative=True)).values[0]
    with torch.no_grad():
        _, _, embeds, mask = pipe.encode_prompt(
            PROMPT, True, negative_prompt=NEGATIVE, device=torch.device("cpu"), complex_human_instruction=own_instruction()
        )
    assert len(ours) == int(mask.sum())
    torch.testing.assert_close(ours, embeds[0, : len(ours)], rtol=0, atol=1e-5)


def test_long_prompts_are_cut_to_three_hundred_tokens(twin: Path, make_run: Callable[..., Run]) -> None:
    rows = encoded(twin, make_run(), Caption("word " * 100), Caption("word " * 100, negative=True)).values
    assert [len(row) for row in rows] == [300, 300]


def recorded_calls(pipe: SanaPipeline, **arguments: Any) -> tuple[list[tuple[dict[str, Any], torch.Tensor]], np.ndarray]:
    """What the pipeline gave its transformer, what came back, and the picture."""
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(({"noisy": args[0].clone(), **kwargs}, output[0].clone()))

    handle = pipe.transformer.register_forward_hook(record, with_kwargs=True)
    try:
        made = pipe(
            PROMPT, NEGATIVE, num_inference_steps=4, use_resolution_binning=False, generator=torch.Generator().manual_seed(7), **arguments
        )
    finally:
        handle.remove()
    return calls, np.asarray(made.images[0])


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_prediction_is_what_the_pipelines_transformer_answers(
    twin: Path, tmp_path: Path, make_run: Callable[..., Run], scale: float
) -> None:
    checkpoint = shutil.copytree(twin, tmp_path / "scaled")
    config = checkpoint / "transformer/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "timestep_scale": scale}))
    pipe = SanaPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    calls, _ = recorded_calls(pipe, height=64, width=96)
    run = make_run()
    embeds = encoded(checkpoint, run, Caption(NEGATIVE, negative=True), Caption(PROMPT))
    model = load(plugin(checkpoint), run, Part.DENOISER)
    assert len(calls) == 4
    for given, answered in calls:
        sigma = given["timestep"].float() / scale / 1000
        with torch.no_grad():
            ours = model.predict(given["noisy"], sigma, Batch(fields={"prompt_embeds": embeds}))
        torch.testing.assert_close(ours, answered, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "guidance"), [(64, 64, 4.5), (64, 96, 4.5), (96, 64, 1.0)])
def test_a_picture_from_kept_embeddings_is_the_pipelines_picture_from_text(
    twin: Path, pipe: SanaPipeline, make_run: Callable[..., Run], height: int, width: int, guidance: float
) -> None:
    _, expected = recorded_calls(pipe, height=height, width=width, guidance_scale=guidance)
    run = make_run()
    positive, negative = encoded(twin, run, Caption(PROMPT), Caption(NEGATIVE, negative=True)).values
    sana = plugin(twin)
    decoder = load(sana, run, Part.DECODER)
    pipeline = decoder.pipeline(load(sana, run, Part.DENOISER).denoiser)
    wanted = request(Ragged([positive]), Ragged([negative]), height=height, width=width, guidance=guidance)
    ours = np.asarray(decoder.sample(pipeline, wanted).content)
    assert ours.shape == (height, width, 3)
    assert ours.std() > 5  # a picture, not a plain colour
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 1

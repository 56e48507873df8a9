"""What we compute is what diffusers' own pipelines compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaImageToVideoPipeline, SanaVideoPipeline
from PIL import Image

from tunesmith import Batch, Caption, Part, Ragged, Run

from .conftest import NEGATIVE, PROMPT, conditions, encoded, load, noise, plugin, request, uniform

MEAN, DEVIATION = (torch.tensor(values).view(1, 4, 1, 1, 1) for values in ([0.1, -0.2, 0.3, -0.4], [0.5, 0.75, 1.25, 1.5]))


def own_instruction() -> list[str]:
    """The pipeline's instruction as its function holds it."""
    found: list[str] = inspect.signature(SanaVideoPipeline.__call__).parameters["complex_human_instruction"].default
    return found


@pytest.mark.parametrize("shape", [(2, 3, 9, 64, 96), (2, 3, 1, 64, 96), (2, 3, 64, 96)], ids=["clips", "one frame", "pictures"])
def test_latents_are_the_posteriors_mean_by_the_autoencoders_statistics(
    twin: Path, pipe: SanaVideoPipeline, make_run: Callable[..., Run], shape: tuple[int, ...]
) -> None:
    family, run = plugin(twin), make_run()
    load(family, run, Part.ENCODERS)
    given = uniform(*shape)
    batch = Batch(captions=(Caption("a"),) * 2, inputs={"pixels": given}, wanted=frozenset({"latents", "latents_std"}))
    fields = family.encode_batch(run, batch)
    clips = given if given.ndim == 5 else given.unsqueeze(2)
    with torch.no_grad():
        posterior = pipe.vae.encode(clips).latent_dist
    frames = clips.shape[2]
    assert fields.tensor("latents").shape == (2, *family.family().latent_shape(frames, 64, 96))
    torch.testing.assert_close(fields.tensor("latents"), (posterior.mode() - MEAN) / DEVIATION, rtol=0, atol=1e-6)
    torch.testing.assert_close(fields.tensor("latents_std"), posterior.std / DEVIATION, rtol=0, atol=1e-6)


def test_decoding_is_the_inverse_of_the_normalisation(twin: Path, pipe: SanaVideoPipeline, make_run: Callable[..., Run]) -> None:
    latents = noise(1, 4, 3, 8, 12)
    with torch.no_grad():
        ours = load(plugin(twin), make_run(), Part.DECODER).decode(latents)
        expected = pipe.vae.decode(latents * DEVIATION + MEAN).sample.clamp(-1, 1)
    assert ours.shape == (1, 3, 9, 64, 96)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "lines"), [(True, own_instruction()), (False, None), ("Film it: ", ["Film it: "])], ids=["own", "off", "text"]
)
@pytest.mark.parametrize(("score", "told"), [(None, ""), (30, " motion score: 30.")], ids=["no score", "score"])
def test_positive_embeddings_are_the_pipelines_without_its_padding(
    twin: Path,
    pipe: SanaVideoPipeline,
    make_run: Callable[..., Run],
    setting: bool | str,
    lines: list[str] | None,
    score: int | None,
    told: str,
) -> None:
    ours = encoded(twin, make_run(), Caption(PROMPT), complex_human_instruction=setting, motion_score=score).values[0]
    with torch.no_grad():
        embeds, mask, *_ = pipe.encode_prompt(PROMPT + told, False, device=torch.device("cpu"), complex_human_instruction=lines)
    assert len(ours) == int(mask.sum())
    assert not mask[0, len(ours) :].any()
    torch.testing.assert_close(ours, embeds[0, : len(ours)], rtol=0, atol=1e-5)


def test_negative_embeddings_are_the_pipelines_whatever_is_put_around_prompts(
    twin: Path, pipe: SanaVideoPipeline, make_run: Callable[..., Run]
) -> None:
    ours = encoded(twin, make_run(), Caption(NEGATIVE, negative=True), motion_score=30).values[0]
    with torch.no_grad():
        _, _, embeds, mask = pipe.encode_prompt(
            PROMPT, True, negative_prompt=NEGATIVE, device=torch.device("cpu"), complex_human_instruction=own_instruction()
        )
    assert len(ours) == int(mask.sum())
    torch.testing.assert_close(ours, embeds[0, : len(ours)], rtol=0, atol=1e-5)


def test_an_empty_caption_has_no_motion_score(twin: Path, make_run: Callable[..., Run]) -> None:
    plain, scored = (encoded(twin, make_run(), Caption(""), motion_score=score).values[0] for score in (None, 30))
    assert torch.equal(plain, scored)


def recorded(pipeline: Any, **arguments: Any) -> tuple[list[tuple[dict[str, Any], torch.Tensor]], np.ndarray]:
    """What a pipeline gave its transformer, what came back, and the clip in steps of 1 / 255."""
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(({"noisy": args[0].clone(), **kwargs}, output[0].clone()))

    handle = pipeline.transformer.register_forward_hook(record, with_kwargs=True)
    try:
        made = pipeline(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=4,
            use_resolution_binning=False,
            generator=torch.Generator().manual_seed(7),
            output_type="np",
            **arguments,
        )
    finally:
        handle.remove()
    return calls, (made.frames[0] * 255).round()


def test_prediction_is_what_the_pipelines_transformer_answers(twin: Path, pipe: SanaVideoPipeline, make_run: Callable[..., Run]) -> None:
    calls, _ = recorded(pipe, height=64, width=96, frames=9)
    run = make_run()
    embeds = encoded(twin, run, Caption(NEGATIVE, negative=True), Caption(PROMPT))
    model = load(plugin(twin), run, Part.DENOISER)
    assert len(calls) == 4
    for given, answered in calls:
        with torch.no_grad():
            ours = model.predict(given["noisy"], given["timestep"].float() / 1000, conditions(embeds))
        torch.testing.assert_close(ours, answered, rtol=0, atol=1e-5)


def from_first_frame(pipe: SanaVideoPipeline) -> SanaImageToVideoPipeline:
    pipeline = SanaImageToVideoPipeline(**pipe.components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_with_the_first_frame_given_prediction_is_what_the_first_frame_pipeline_answers(
    twin: Path, pipe: SanaVideoPipeline, make_run: Callable[..., Run]
) -> None:
    picture = Image.fromarray(((uniform(64, 96, 3, seed=3) + 1) * 127.5).round().byte().numpy())
    calls, _ = recorded(from_first_frame(pipe), image=picture, height=64, width=96, frames=9)
    run = make_run()
    embeds = encoded(twin, run, Caption(NEGATIVE, negative=True), Caption(PROMPT))
    model = load(plugin(twin), run, Part.DENOISER)
    for given, answered in calls:
        assert given["timestep"].shape == (2, 1, 3, 4, 6)
        sigma = given["timestep"][:, :, :, :1, :1].float() / 1000  # [B, 1, F, 1, 1], as the trainer has it
        assert (sigma[:, :, 0] == 0).all()
        with torch.no_grad():
            ours = model.predict(given["noisy"], sigma, conditions(embeds))
        torch.testing.assert_close(ours, answered, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "guidance"), [((64, 96, 9), 6.0), ((96, 64, 17), 6.0), ((64, 64, 1), 1.0)], ids=str)
def test_a_clip_from_kept_embeddings_is_the_pipelines_clip_from_text(
    twin: Path, pipe: SanaVideoPipeline, make_run: Callable[..., Run], size: tuple[int, int, int], guidance: float
) -> None:
    height, width, frames = size
    _, expected = recorded(pipe, height=height, width=width, frames=frames, guidance_scale=guidance)
    ours = sampled(twin, make_run(), height=height, width=width, frames=frames, guidance=guidance)
    assert ours.shape == (frames, height, width, 3)
    assert ours.std() > 5  # a picture, not a plain colour
    assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize("scheduler", [None, "FlowMatchEulerDiscreteScheduler"])
def test_a_clip_from_a_reference_is_the_first_frame_pipelines(
    twin: Path, pipe: SanaVideoPipeline, make_run: Callable[..., Run], scheduler: str | None
) -> None:
    reference = ((uniform(3, 64, 96, seed=3) + 1) * 127.5).round() / 127.5 - 1
    picture = Image.fromarray(((reference + 1) * 127.5).round().byte().movedim(0, -1).numpy())
    pipeline = from_first_frame(pipe)
    if scheduler:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=8.0)
    _, expected = recorded(pipeline, image=picture, height=64, width=96, frames=9)
    ours = sampled(twin, make_run(), scheduler=scheduler, given={"reference": reference})
    assert np.abs(ours - expected).max() <= 1
    assert not np.array_equal(ours, sampled(twin, make_run(), scheduler=scheduler))


def sampled(twin: Path, run: Run, **changes: Any) -> np.ndarray:
    positive, negative = encoded(twin, run, Caption(PROMPT), Caption(NEGATIVE, negative=True)).values
    family = plugin(twin)
    decoder = load(family, run, Part.DECODER)
    pipeline = decoder.pipeline(load(family, run, Part.DENOISER).denoiser)
    media = decoder.sample(pipeline, request(Ragged([positive]), Ragged([negative]), **changes))
    assert media.kind == "clip"
    assert media.content.fps == 16.0
    frames: np.ndarray = media.content.frames.numpy().astype(float)
    return frames

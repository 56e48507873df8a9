"""Prediction and sampling are the pipeline's own; what a step leaves out is drawn by its position."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tunesmith import Batch, Caption, Clip, InputError, Media, Part, Ragged, Run, SampleRequest, TokenGrid
from tunesmith_wan_s2v import WanS2VModel, WanSpeechToVideoPipeline
from tunesmith_wan_s2v.model import num_clips

from .conftest import HEIGHT, WIDTH, encoded, inputs, load, noise, plugin, sources, uniform

MakeRun = Callable[..., Run]
FRAMES, PROMPT, NEGATIVE = 9, "somebody sings", "blurred"
SIGMA = torch.tensor([0.2, 0.7])
LATENTS = (2, 4, 2, HEIGHT // 8, WIDTH // 8)


@pytest.fixture(scope="module")
def batch(twin: Path, make_run: MakeRun) -> Batch:
    """Two clips with motion and poses."""
    given = inputs(FRAMES, history=72, control=True)
    run = make_run(controlled=True)
    return encoded(plugin(twin, motion=0.5), run, given, sources(FRAMES))


@pytest.fixture
def model(twin: Path, make_run: MakeRun) -> WanS2VModel:
    return load(plugin(twin), make_run(), Part.DENOISER)


def without(batch: Batch, *keys: str, **changes: Any) -> Batch:
    fields = {key: value for key, value in batch.fields.items() if key not in keys}
    return Batch(batch.sources, batch.captions, {}, {**fields, **changes})


def predict(model: WanS2VModel, batch: Batch, seed: int = 0) -> Tensor:
    with torch.no_grad():
        return model.predict(noise(*LATENTS, seed=seed), SIGMA, batch)


# Prediction


def recorded_calls(pipe: WanSpeechToVideoPipeline, **arguments: Any) -> tuple[list[tuple[dict[str, Any], Tensor]], Tensor]:
    """What the pipeline gave its transformer, what came back, and the film [F, 3, H, W] in [0, 1]."""
    calls: list[tuple[dict[str, Any], Tensor]] = []

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(({"noisy": args[0].clone(), "timestep": args[1].clone(), **kwargs}, output[0].clone()))

    handle = pipe.transformer.register_forward_hook(record, with_kwargs=True)
    try:
        ((film,),) = pipe(
            **arguments,
            height=HEIGHT,
            width=WIDTH,
            num_frames_per_chunk=FRAMES - 1,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(7),
            output_type="pt",
            return_dict=False,
        )
    finally:
        handle.remove()
    return calls, film


def given() -> dict[str, Tensor]:
    """What a sample is given: a picture of another size and shape, sound for two clips, and poses for a part of them."""
    return {"reference": uniform(3, 120, 150), "audio": uniform(1, 16_000, seed=1) * 0.3, "control": uniform(3, 11, HEIGHT, WIDTH, seed=2)}


def as_pipeline(given: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "image": (given["reference"][None] + 1) / 2,
        "audio": given["audio"],
        "pose_video": (given["control"].transpose(0, 1) + 1) / 2,
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
    }


def embeds(twin: Path, run: Run) -> dict[Caption, Ragged]:
    family = plugin(twin)
    load(family, run, Part.ENCODERS)
    captions = (Caption(PROMPT), Caption(NEGATIVE, negative=True))
    rows = family.encode_batch(run, Batch(captions=captions, wanted=frozenset({"prompt_embeds"}))).ragged("prompt_embeds").values
    return {caption: Ragged([row]) for caption, row in zip(captions, rows, strict=True)}


def test_prediction_is_what_the_pipelines_transformer_answers_with_motion_and_without(
    twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun
) -> None:
    calls, _ = recorded_calls(pipe, **as_pipeline(given()), num_chunks=2)
    prompts = list(embeds(twin, make_run()).values())
    family = plugin(twin, motion=1)
    run = make_run()
    model = load(family, run, Part.DENOISER)
    assert [call["motion_latents"] is None for call, _ in calls] == [True] * 4 + [False] * 4  # first clip, second clip
    for number, (call, answered) in enumerate(calls):
        motion = call["motion_latents"]
        rows = [torch.zeros(0, 4, 8, 12)] if motion is None else [motion[0].transpose(0, 1)]
        fields: dict[str, Any] = {
            "prompt_embeds": prompts[number % 2],
            "audio_embeds": call["audio_embeds"],
            "reference_latents": call["image_latents"],
            "motion_latents": Ragged(rows),
            "control_latents": Ragged([call["pose_latents"][0].transpose(0, 1)]),
        }
        conditions = Batch(fields=fields)
        with within_step(run, conditions), torch.no_grad():
            ours = model.predict(call["noisy"], call["timestep"].float() / 1000, conditions)
        torch.testing.assert_close(ours, answered, rtol=0, atol=1e-5)


def test_every_condition_matters(model: WanS2VModel, batch: Batch) -> None:
    plain = predict(model, batch)
    changed = {
        "audio_embeds": batch.tensor("audio_embeds").flip(0),
        "reference_latents": batch.tensor("reference_latents").flip(0),
        "control_latents": Ragged(batch.ragged("control_latents").values[::-1]),
        "prompt_embeds": Ragged(batch.ragged("prompt_embeds").values[::-1]),
    }
    for key, value in changed.items():
        assert (predict(model, without(batch, **{key: value})) - plain).abs().max() > 1e-4, key


def test_samples_without_poses_have_zeros_for_them(model: WanS2VModel, batch: Batch) -> None:
    first, second = batch.ragged("control_latents").values
    mixed = predict(model, without(batch, control_latents=Ragged([first, second[:0]])))
    torch.testing.assert_close(mixed[:1], predict(model, batch)[:1], rtol=0, atol=1e-5)
    nobody = without(batch, control_latents=Ragged([first[:0], second[:0]]))
    torch.testing.assert_close(mixed[1:], predict(model, nobody)[1:], rtol=0, atol=1e-5)
    assert torch.equal(predict(model, nobody), predict(model, without(batch, "control_latents")))
    zeros = without(batch, control_latents=Ragged([torch.zeros_like(first)] * 2))
    torch.testing.assert_close(predict(model, nobody), predict(model, zeros), rtol=0, atol=1e-6)


def test_sigma_may_broadcast_but_not_vary_within_a_sample(model: WanS2VModel, batch: Batch) -> None:
    plain = predict(model, batch)
    with torch.no_grad():
        assert torch.equal(plain, model.predict(noise(*LATENTS), SIGMA.reshape(2, 1, 1, 1, 1), batch))
        with pytest.raises(ValueError, match="one sigma a sample"):
            model.predict(noise(*LATENTS), torch.rand(2, 1, 2, 1, 1), batch)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_predicts_and_trains_close_to_full(
    twin: Path, make_run: MakeRun, model: WanS2VModel, batch: Batch, weights: str, autocast: bool
) -> None:
    full = predict(model, batch)
    half = load(plugin(twin), make_run(weights), Part.DENOISER)
    assert half.denoiser.blocks[0].attn1.to_q.weight.dtype == (torch.bfloat16 if weights == "bf16" else torch.float32)
    assert half.denoiser.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    half.denoiser.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        prediction = half.predict(noise(*LATENTS), SIGMA, batch)
    assert prediction.dtype == torch.float32
    assert (prediction - full).norm() / full.norm() < 0.05
    prediction.square().mean().backward()
    packer = {name for name, _ in half.denoiser.named_parameters() if name.startswith("frame_packer")}
    for name, weight in half.denoiser.named_parameters():  # nothing is packed without motion
        assert weight.grad is not None and weight.grad.isfinite().all() if name not in packer else weight.grad is None, name


def test_token_grid_and_decoded_frames_are_those_that_are_trained_on(twin: Path, make_run: MakeRun, batch: Batch) -> None:
    decoder = load(plugin(twin), make_run(), Part.DECODER)
    latents = batch.tensor("latents")
    assert decoder.token_grid(latents) == TokenGrid(2, HEIGHT // 16, WIDTH // 16)
    with torch.no_grad():
        whole = decoder.decode(latents, batch.tensor("reference_latents"))
        assert decoder.decode(latents).shape == whole.shape == (2, 3, 8, HEIGHT, WIDTH)
        both = torch.cat([batch.tensor("reference_latents"), latents], dim=2)
        mean, deviation = (
            torch.tensor(decoder.encoder("vae").config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
        )
        expected = decoder.encoder("vae").decode(both * deviation + mean).sample[:, :, 1:].clamp(-1, 1)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)


# What a step gives


class within_step:  # noqa: N801  a context, named as it reads
    """Make a batch that of the run's current step."""

    def __init__(self, run: Run, batch: Batch, position: int = 0, mode: str = "train") -> None:
        self.run = cast(Any, run)
        self.step = SimpleNamespace(batch=batch, position=position, mode=mode, scratch=defaultdict(dict))

    def __enter__(self) -> None:
        self.run.current = self.step

    def __exit__(self, *error: object) -> None:
        self.run.current = None


@pytest.fixture
def calls(twin: Path, make_run: MakeRun, batch: Batch) -> Callable[..., list[dict[str, Any]]]:
    """What the network is given at many positions, under some settings."""

    def collect(mode: str = "train", times: int = 1, conditions: Batch = batch, **settings: Any) -> list[dict[str, Any]]:
        run = make_run(controlled=True)
        model = load(plugin(twin, **settings), run, Part.DENOISER)
        seen: list[dict[str, Any]] = []

        def prepared(noisy: Tensor, **kwargs: Any) -> tuple[Tensor]:
            seen.append(kwargs)
            return (noisy,)

        model.prepared = prepared
        for position in range(40):
            with within_step(run, conditions, position, mode):
                for _ in range(times):
                    model.predict(noise(*LATENTS), SIGMA, conditions)
        return seen

    return collect


def dropped(calls: list[dict[str, Any]]) -> list[bool]:
    assert all((call["motion_latents"] is None) is call["drop_motion_frames"] for call in calls)
    return [call["drop_motion_frames"] for call in calls]


def silent(calls: list[dict[str, Any]]) -> Tensor:
    return torch.stack([(call["audio_embeds"] == 0).flatten(1).all(dim=1) for call in calls])  # [positions, B]


def test_motion_is_given_in_its_share_of_steps(calls: Callable[..., list[dict[str, Any]]]) -> None:
    assert all(dropped(calls()))
    assert not any(dropped(calls(motion=1)))
    half = dropped(calls(motion=0.5))
    assert 8 < sum(half) < 32
    assert half == dropped(calls(motion=0.5))
    [given] = {tuple(call["motion_latents"].shape) for call in calls(motion=1)}
    assert given == (2, 4, 19, HEIGHT // 8, WIDTH // 8)
    assert {call["motion_frames"] for call in calls(motion=1)} == {(73, 19)}


def test_motion_is_left_out_where_a_sample_of_the_batch_has_none(calls: Callable[..., list[dict[str, Any]]], batch: Batch) -> None:
    first, second = batch.ragged("motion_latents").values
    assert all(dropped(calls(motion=1, conditions=without(batch, motion_latents=Ragged([first, second[:0]])))))


def test_silence_falls_on_its_share_of_samples_and_not_while_evaluating(calls: Callable[..., list[dict[str, Any]]]) -> None:
    assert not silent(calls()).any()
    some = silent(calls(audio_dropout=0.3))
    assert 8 < some.sum() < 40  # of 80
    assert any(row[0] != row[1] for row in some)  # each sample for itself
    assert torch.equal(some, silent(calls(audio_dropout=0.3)))
    assert not silent(calls(mode="eval", audio_dropout=0.3)).any()


def test_a_step_gives_the_same_however_often_it_predicts(calls: Callable[..., list[dict[str, Any]]]) -> None:
    twice = calls(times=2, motion=0.5, audio_dropout=0.3)
    assert dropped(twice[::2]) == dropped(twice[1::2])
    assert torch.equal(silent(twice[::2]), silent(twice[1::2]))


def test_outside_of_steps_nothing_is_drawn(twin: Path, make_run: MakeRun, batch: Batch, model: WanS2VModel) -> None:
    other = load(plugin(twin, motion=1, audio_dropout=0.9), make_run(), Part.DENOISER)
    assert torch.equal(predict(other, batch), predict(model, batch))


# Sampling


@pytest.fixture(scope="module")
def film(twin: Path, make_run: MakeRun) -> Callable[..., Media]:
    family, run = plugin(twin, revision="v1"), make_run()
    prompts = list(embeds(twin, run).values())
    decoder = load(family, run, Part.DECODER)
    pipeline = decoder.pipeline(load(family, run, Part.DENOISER).denoiser)

    def make(**changes: Any) -> Media:
        values: dict[str, Any] = {
            "name": "one",
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "width": WIDTH,
            "height": HEIGHT,
            "frames": FRAMES,
            "guidance": 4.5,
            "steps": 2,
            "seed": 7,
            "scheduler": None,
            "fps": 16.0,
            "given": given(),
            "conditions": {"prompt_embeds": prompts[0]},
            "negative": {"prompt_embeds": prompts[1]},
        }
        return decoder.sample(pipeline, SampleRequest(**{**values, **changes}))

    return make


@pytest.mark.parametrize("guidance", [4.5, 1.0])
def test_a_film_from_kept_embeddings_is_the_pipelines_film_from_text(
    pipe: WanSpeechToVideoPipeline, film: Callable[..., Media], guidance: float
) -> None:
    _, expected = recorded_calls(pipe, **as_pipeline(given()), num_chunks=2, guidance_scale=guidance)
    media = film(guidance=guidance, **({"negative": {}} if guidance == 1 else {}))
    clip = media.content
    assert isinstance(clip, Clip)
    assert (media.kind, media.name, clip.fps) == ("clip", "one", 16.0)
    ours = clip.frames.movedim(-1, 1).float() / 255
    assert ours.shape == expected.shape == (2 * (FRAMES - 1) - 3, 3, HEIGHT, WIDTH)
    assert ours.std() > 0.02  # a picture, not a plain colour
    torch.testing.assert_close(ours, expected, rtol=0, atol=1.5 / 255)


def test_the_sound_is_that_of_the_frames_that_are_kept(film: Callable[..., Media]) -> None:
    clip = film(steps=1, guidance=1.0).content
    sound = given()["audio"]
    assert clip.sample_rate == 16_000
    assert torch.equal(clip.audio, sound[:, 3000:])  # three frames of 16 a second are thrown away


@pytest.mark.parametrize(("samples", "clips"), [(100, 1), (8 * 1000, 1), (9 * 1000, 1), (9 * 1000 + 1, 2), (17 * 1000, 2), (18 * 1000, 3)])
def test_there_are_as_many_clips_as_the_sound_is_long(samples: int, clips: int) -> None:
    request = cast(SampleRequest, SimpleNamespace(frames=FRAMES, fps=16.0))
    assert num_clips(samples, request) == clips


def test_a_film_depends_on_seed_sound_reference_and_poses(film: Callable[..., Media]) -> None:
    short = {**given(), "audio": given()["audio"][:, :8000]}

    def frames(**changes: Any) -> Tensor:
        made: Tensor = film(**{"given": short, "steps": 1, "guidance": 1.0, **changes}).content.frames
        return made

    plain = frames()
    assert torch.equal(plain, frames())
    changes: list[dict[str, Any]] = [{"seed": 8}]
    changes += [{"given": {**short, key: value.flip(-1)}} for key, value in short.items()]
    changes.append({"given": {key: value for key, value in short.items() if key != "control"}})
    for change in changes:
        assert not torch.equal(plain, frames(**change)), change.keys()


@pytest.mark.parametrize(("name", "kind"), [(None, "UniPCMultistepScheduler"), ("euler", "FlowMatchEulerDiscreteScheduler")])
def test_the_recipe_says_all_and_is_json(film: Callable[..., Media], twin: Path, name: str | None, kind: str) -> None:
    recipe = json.loads(json.dumps(film(scheduler=name, guidance=1.0).recipe, allow_nan=False))
    known = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "width": WIDTH, "height": HEIGHT, "sampling_steps": 2, "seed": 7, "fps": 16.0}
    assert known.items() <= recipe.items()
    assert (recipe["family"], recipe["model"], recipe["revision"]) == ("wan_s2v", str(twin), "v1")
    assert (recipe["clips"], recipe["given"], recipe["sound_begins_at"]) == (2, ["audio", "control", "reference"], 3 / 16)
    assert recipe["scheduler"] == kind
    assert recipe["scheduler_config"].get("flow_shift", recipe["scheduler_config"].get("shift")) == 3.0


def test_what_cannot_be_sampled_is_told(film: Callable[..., Media]) -> None:
    with pytest.raises(InputError, match="use 96x64"):
        film(width=100)
    with pytest.raises(InputError, match="nonsense"):
        film(scheduler="nonsense")

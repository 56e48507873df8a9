"""Silence means one thing, in training and in films: vectors of zeros, as past the end of a sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from tunesmith import Clip, Media, Part, Ragged, Run, SampleRequest, Source, Window
from tunesmith_wan_s2v import WanSpeechToVideoPipeline
from tunesmith_wan_s2v.sound import hidden_states, window_features

from .components import audio_encoder, sound
from .conftest import FPS, HEIGHT, WIDTH, encoded, inputs, load, noise, plugin, sources, uniform

FRAMES = 9
MakeRun = Callable[..., Run]


def silent_after(waveform: Tensor, samples: int) -> Tensor:
    return torch.cat([waveform[..., :samples], torch.zeros_like(waveform[..., samples:])], dim=-1)


def heard(features: Tensor) -> list[bool]:
    """For each frame of [layers, width, frames], whether anything is heard."""
    return [bool(one) for one in (features != 0).any(dim=0).any(dim=0)]


def test_zeros_at_the_end_are_cut_off_before_the_sound_is_brought_to_mean_0_and_variance_1() -> None:
    encoder, processor, waveform = audio_encoder(), Wav2Vec2FeatureExtractor(), sound(0.5) + 0.3
    padded = torch.cat([waveform, torch.zeros(8000)])
    assert torch.equal(hidden_states(encoder, processor, padded), hidden_states(encoder, processor, waveform))
    features = window_features(encoder, processor, padded, 16, 16)
    assert torch.equal(features, window_features(encoder, processor, waveform, 16, 16))
    assert heard(features) == [True] * 8 + [False] * 8
    with_hiss = torch.cat([waveform, torch.full((8000,), 1e-6)])  # only what is exactly zero is silence
    assert heard(window_features(encoder, processor, with_hiss, 16, 16)) == [True] * 16


def test_silence_before_and_between_is_part_of_the_sound() -> None:
    encoder, processor = audio_encoder(), Wav2Vec2FeatureExtractor()
    waveform = torch.cat([torch.zeros(4000), sound(0.25), torch.zeros(4000), sound(0.25, seed=1)])
    assert heard(window_features(encoder, processor, waveform, 16, 16)) == [True] * 16


@pytest.mark.parametrize("shape", [(0,), (8000,), (2, 8000), (1, 0)])
def test_a_sound_of_zeros_alone_gives_zeros(shape: tuple[int, ...]) -> None:
    features = window_features(audio_encoder(), Wav2Vec2FeatureExtractor(), torch.zeros(shape), 8, 16)
    assert heard(features) == [False] * 8


def test_clips_stills_and_the_ends_of_sounds_are_silent_in_the_same_way(
    twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun
) -> None:
    given = inputs(FRAMES)
    ends = 1000 + 4500  # the first frame, and four and a half of the eight behind it
    given["audio"] = torch.stack([silent_after(given["audio"][0], ends), torch.zeros_like(given["audio"][1])])
    ends_early, silent = encoded(plugin(twin), make_run(), given, sources(FRAMES)).tensor("audio_embeds")
    expected = pipe.encode_audio(given["audio"][0, :, 1000:ends], num_frames_per_chunk=FRAMES - 1, num_chunks=1)[0]
    torch.testing.assert_close(ends_early, expected, rtol=0, atol=1e-5)
    assert heard(ends_early) == [True] * 4 + [False] * 4
    still = encoded(plugin(twin), make_run(), inputs(1), sources(1)).tensor("audio_embeds")[0]
    assert not silent.any()
    assert not still.any()


def test_the_first_frame_is_not_heard_even_where_it_is_all_that_sounds(twin: Path, make_run: MakeRun) -> None:
    given = inputs(FRAMES)
    given["audio"] = silent_after(given["audio"], 1000)
    samples = tuple(Source(one.dataset, one.file, one.caption, one.crop, Window(0.0, FRAMES, FPS)) for one in sources(FRAMES))
    assert not encoded(plugin(twin), make_run(), given, samples).tensor("audio_embeds").any()


def test_features_that_were_made_otherwise_are_not_met(twin: Path, make_run: MakeRun) -> None:
    family, run = plugin(twin), make_run()
    [field] = [one for one in family.fields(run) if one.key == "audio_embeds"]
    before = f"{family.fingerprint(run, 'audio_encoder')} {run.fingerprint(twin / 'audio_processor' / 'preprocessor_config.json')}"
    assert field.fingerprint == f"{before} sound-2"


def test_a_sound_that_ends_in_silence_is_filmed_to_its_end(pipe: WanSpeechToVideoPipeline) -> None:
    waveform = uniform(16_000)
    whole = pipe.encode_audio(waveform, num_frames_per_chunk=8)
    ending = pipe.encode_audio(silent_after(waveform, 4000), num_frames_per_chunk=8)
    assert heard(whole[0]) == [True] * 16
    assert heard(ending[0]) == [True] * 4 + [False] * 12


@pytest.fixture(scope="module")
def film(twin: Path, make_run: MakeRun) -> Callable[..., Media]:
    family, run = plugin(twin), make_run()
    decoder = load(family, run, Part.DECODER)
    pipeline = decoder.pipeline(load(family, run, Part.DENOISER).denoiser)

    def make(**given: Tensor) -> Media:
        settings: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES, "guidance": 1.0, "steps": 1, "seed": 7}
        conditions = {"prompt_embeds": Ragged([noise(5, 16)])}
        texts: dict[str, Any] = {"prompt": "a", "negative_prompt": "", "conditions": conditions, "negative": {}}
        request = SampleRequest(name="one", scheduler=None, fps=FPS, given={"reference": uniform(3, 64, 96), **given}, **texts, **settings)
        return decoder.sample(pipeline, request)

    return make


@pytest.mark.parametrize(
    "given", [{}, {"audio": torch.zeros(1, 0)}, {"audio": torch.zeros(1, 40_000)}], ids=["none", "no samples", "zeros"]
)
def test_a_picture_without_sound_is_filmed_for_one_clip_in_silence(
    film: Callable[..., Media], pipe: WanSpeechToVideoPipeline, given: dict[str, Tensor]
) -> None:
    media = film(**given)
    assert isinstance(media.content, Clip)
    assert media.recipe["clips"] == 1
    assert media.content.audio is None
    ((expected,),) = pipe(
        image=(uniform(3, 64, 96)[None] + 1) / 2,
        audio_embeds=torch.zeros(1, 4, 16, FRAMES - 1),
        prompt_embeds=torch.cat([noise(5, 16), torch.zeros(507, 16)])[None],
        height=HEIGHT,
        width=WIDTH,
        num_frames_per_chunk=FRAMES - 1,
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
        return_dict=False,
    )
    torch.testing.assert_close(media.content.frames.movedim(-1, 1).float() / 255, expected, rtol=0, atol=1.5 / 255)

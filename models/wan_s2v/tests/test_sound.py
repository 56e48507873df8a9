"""From waveforms to what the network hears, against the reference's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from tunesmith import InputError
from tunesmith_wan_s2v.sound import frame_steps, hidden_states, num_clips, pick_frames, resample, silence, window_features

from .components import SOUND_LAYERS, SOUND_WIDTH, audio_encoder, sound
from .goldens import difference, facts, group, tensors

every_case = pytest.mark.parametrize("case", facts("audio")["cases"])
every_table = pytest.mark.parametrize("table", facts("audio")["index_tables"])


@pytest.fixture(scope="module")
def golden() -> tuple[Wav2Vec2ForCTC, Wav2Vec2FeatureExtractor]:
    """The speech model whose weights are in the golden data, and its feature extractor."""
    encoder = Wav2Vec2ForCTC(Wav2Vec2Config(**facts("wav2vec")["config"]))
    encoder.load_state_dict(group("wav2vec", "sd"))
    return encoder.eval(), Wav2Vec2FeatureExtractor(**facts("wav2vec")["feature_extractor"])


def test_every_hidden_state_is_that_of_transformers_4(golden: Any) -> None:
    encoder, processor = golden
    states = hidden_states(encoder, processor, tensors("wav2vec")["in.waveform"])
    assert states.dtype == torch.float32
    assert difference(states, tensors("wav2vec")["out.hidden_states"]) < 1e-4


def test_the_last_hidden_state_is_not_the_raw_one_of_transformers_5(golden: Any) -> None:
    encoder, processor = golden
    waveform, wrong = tensors("wav2vec")["in.waveform"], tensors("wav2vec")["wrong.hidden_states_last_without_final_norm"]
    values = processor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_values
    assert difference(values, tensors("wav2vec")["mid.input_values"]) < 1e-5
    with torch.no_grad():
        assert difference(encoder(values, output_hidden_states=True).hidden_states[-1], wrong) < 1e-4  # the trap is still there
    assert difference(hidden_states(encoder, processor, waveform)[-1:], wrong) > 0.1


def test_the_speech_model_is_heard_without_its_head_too_and_left_as_it_was(golden: Any) -> None:
    encoder, processor = golden
    waveform = tensors("wav2vec")["in.waveform"]
    assert torch.equal(hidden_states(encoder.wav2vec2, processor, waveform), hidden_states(encoder, processor, waveform))
    assert not encoder.wav2vec2._forward_hooks


@every_case
def test_features_are_resampled_and_picked_as_the_reference_does(case: str) -> None:
    settings, golden = facts("audio")["cases"][case], group("audio", case)
    steps = resample(golden["in.hidden_states"])
    assert difference(steps, golden["mid.feat30"]) < 1e-5
    clips = num_clips(steps.shape[1], settings["infer_frames"], settings["fps"])
    assert clips == settings["num_repeat"]
    assert difference(pick_frames(steps, clips * settings["infer_frames"], settings["fps"])[None], golden["out.audio_embeds"]) < 1e-5


@every_table
def test_frames_take_the_steps_of_the_reference(table: str) -> None:
    known = facts("audio")["index_tables"][table]
    steps, frames, fps = known["audio_frames_30fps"], known["infer_frames"], known["fps"]
    assert num_clips(steps, frames, fps) == known["num_repeat"]
    assert frame_steps(steps, frames * known["num_repeat"], fps).tolist() == known["indices"]


def test_a_window_has_four_steps_for_each_latent_of_its_frames() -> None:
    encoder, processor = audio_encoder(), Wav2Vec2FeatureExtractor()
    for latents in (1, 5, 20):
        features = window_features(encoder, processor, sound(4 * latents / 16), 4 * latents, 16)
        assert features.shape == (SOUND_LAYERS + 1, SOUND_WIDTH, 4 * latents)
        assert (features.abs().sum(dim=(0, 1)) > 0).all()


def test_past_the_end_of_a_sound_there_is_nothing() -> None:
    encoder, processor = audio_encoder(), Wav2Vec2FeatureExtractor()
    heard = window_features(encoder, processor, sound(0.5), 16, 16).abs().sum(dim=(0, 1)) > 0
    assert heard.tolist() == [True] * 8 + [False] * 8  # 14 steps at 30 Hz; frame 8 would take step 15


@pytest.mark.parametrize(("samples", "states"), [(0, 0), (399, 0), (400, 1), (719, 1), (720, 2), (16000, 49)])
def test_a_sound_too_short_for_a_state_is_silent(samples: int, states: int) -> None:
    encoder, processor = audio_encoder(), Wav2Vec2FeatureExtractor()
    waveform = sound(samples / 16000)
    assert hidden_states(encoder, processor, waveform).shape == (SOUND_LAYERS + 1, states, SOUND_WIDTH)
    features = window_features(encoder, processor, waveform, 4, 16)
    assert (features.abs().sum() > 0) == (int(states / 50 * 30) > 0)


def test_silence_has_the_shape_of_features_and_no_sound() -> None:
    encoder, processor = audio_encoder(), Wav2Vec2FeatureExtractor()
    features = window_features(encoder, processor, sound(0.25), 4, 16)
    assert torch.equal(silence(encoder.config, 4), torch.zeros_like(features))


def test_channels_are_averaged() -> None:
    encoder, processor = audio_encoder(), Wav2Vec2FeatureExtractor()
    left, right = sound(0.2, seed=1), sound(0.2, seed=2)
    mono = hidden_states(encoder, processor, (left + right) / 2)
    assert difference(hidden_states(encoder, processor, torch.stack([left, right])), mono) < 1e-5


def test_loudness_does_not_matter() -> None:
    encoder, processor = audio_encoder(), Wav2Vec2FeatureExtractor()
    assert difference(hidden_states(encoder, processor, sound(0.2)), hidden_states(encoder, processor, sound(0.2) * 7 + 0.5)) < 1e-3


def test_features_are_made_in_full_precision_within_autocast() -> None:
    encoder, processor = audio_encoder(), Wav2Vec2FeatureExtractor()
    plain = hidden_states(encoder, processor, sound(0.2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hidden_states(encoder, processor, sound(0.2)), plain)


def test_another_rate_or_shape_is_refused() -> None:
    encoder, processor = audio_encoder(), Wav2Vec2FeatureExtractor()
    with pytest.raises(InputError, match=r"44100 samples a second.*takes 16000"):
        hidden_states(encoder, processor, sound(0.1), sample_rate=44100)
    with pytest.raises(InputError, match=r"\(1, 1, 1600\)"):
        hidden_states(encoder, processor, sound(0.1)[None, None])

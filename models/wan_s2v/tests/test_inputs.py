"""What the network takes, and what it says of inputs that do not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunesmith import InputError
from tunesmith_wan_s2v import WanS2VTransformer3DModel

from .goldens import difference, facts, inputs, network, prediction

CASE = inputs("a", "motion_pose")  # three latent frames of 8x8, one sample
SOUND, MOTION, REFERENCE = CASE["audio_embeds"], CASE["motion_latents"], CASE["image_latents"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_embeds": SOUND[..., :11]}, "audio_embeds have 11 steps for 3 latent frames: .* give 12"),
        ({"audio_embeds": torch.cat([SOUND, SOUND], dim=-1)}, "audio_embeds have 24 steps"),
        ({"audio_embeds": SOUND[:, :4]}, "audio_embeds have 4 layers; the network weighs 5"),
        ({"timestep": torch.tensor([1.0, 2.0])}, r"timestep of shape \(2,\) does not go with a batch of 1 samples"),
        ({"timestep": torch.tensor(1.0)}, r"timestep of shape \(\) does not go with a batch"),
        ({"motion_latents": MOTION.repeat(2, 1, 1, 1, 1)}, r"motion_latents of shape .* does not go with a batch of 1"),
        ({"motion_latents": MOTION[..., :6]}, r"motion_latents of \(8, 6\) latents do not match the clip's \(8, 8\)"),
        ({"motion_latents": None}, "motion_latents is None: give the latents before the clip, or drop_motion_frames=True"),
        ({"pose_latents": CASE["pose_latents"][:, :, :2]}, r"pose_latents of \(2, 8, 8\) latents do not match"),
        ({"image_latents": torch.cat([REFERENCE, REFERENCE], dim=2)}, "image_latents have 2 frames"),
        ({"image_latents": REFERENCE[..., :7]}, r"image_latents of \(1, 8, 7\) latents cannot be cut into patches of \(1, 2, 2\)"),
        ({"motion_frames": [73, 20]}, r"motion_frames = \[73, 20\]: 20 latent frames stand for 77 frames"),
        ({"add_last_motion": 3}, "add_last_motion = 3; it must be 2"),
    ],
)
def test_inputs_that_do_not_fit_are_named_with_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prediction(network("a"), {**CASE, **change})


def test_motion_that_is_too_small_to_be_packed_is_named() -> None:
    small = {key: value[..., :6] if value.ndim == 5 else value for key, value in CASE.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(ValueError, match=r"motion cannot be packed at \(8, 6\) latents: it needs 8x8"):
        prediction(network("a"), {**CASE, **small})
    prediction(network("a"), {**CASE, **small, "drop_motion_frames": True})


def test_clips_longer_than_the_rotary_range_are_named() -> None:
    with pytest.raises(ValueError, match="no side may be longer than rope_max_seq_len = 7"):
        prediction(network("a", rope_max_seq_len=7), CASE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adain_mode": "norm"}, "adain_mode = 'norm' .* must be 'attn_norm'"),
        ({"qk_norm": "layer_norm"}, "qk_norm = 'layer_norm'"),
        ({"added_kv_proj_dim": 16}, "added_kv_proj_dim = 16"),
        ({"framepack_drop_mode": "pad"}, "must be 'padd' or 'drop'"),
        ({"audio_inject_layers": [0, 4]}, "names blocks beyond the 4 that there are"),
    ],
)
def test_configurations_that_would_be_ignored_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WanS2VTransformer3DModel(**{**facts("a")["config"], **change})


@pytest.mark.parametrize("motion_frames", [[17, 5], [5, 2], [1, 1]])
def test_how_many_frames_came_before_does_not_change_what_is_heard(motion_frames: list[int]) -> None:
    model = network("a")
    assert difference(prediction(model, {**CASE, "motion_frames": motion_frames}), prediction(model, CASE)) < 1e-5


def test_no_pose_is_a_pose_of_zeros() -> None:
    model = network("a")
    zeros = prediction(model, {**CASE, "pose_latents": torch.zeros_like(CASE["pose_latents"])})
    assert torch.equal(prediction(model, {**CASE, "pose_latents": None}), zeros)
    assert difference(prediction(model, CASE), zeros) > 1e-3


def test_dropped_motion_need_not_be_given() -> None:
    model = network("a")
    dropped = {**CASE, "drop_motion_frames": True}
    assert torch.equal(prediction(model, {**dropped, "motion_latents": None}), prediction(model, dropped))


def test_no_motion_frames_are_packed_as_zeros_and_unpacked_as_nothing() -> None:
    packed, unpacked = network("a"), network("c")
    zeros = prediction(packed, {**CASE, "motion_latents": torch.zeros_like(MOTION)})
    assert torch.equal(prediction(packed, {**CASE, "motion_latents": MOTION[:, :, :0]}), zeros)
    case = inputs("c", "motion")
    dropped = prediction(unpacked, {**case, "drop_motion_frames": True})
    assert torch.equal(prediction(unpacked, {**case, "motion_latents": case["motion_latents"][:, :, :0]}), dropped)


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_network_without_last_motion_never_shows_it(asked: int) -> None:
    without = prediction(network("a", add_last_motion=False), {**CASE, "add_last_motion": asked})
    assert torch.equal(without, prediction(network("a"), {**CASE, "add_last_motion": 0}))


def test_every_row_of_the_text_counts_and_any_number_of_rows_is_taken() -> None:
    model, text = network("a"), CASE["encoder_hidden_states"]
    longer = torch.cat([text, torch.zeros(1, 3, text.shape[2])], dim=1)
    assert difference(prediction(model, {**CASE, "encoder_hidden_states": longer}), prediction(model, CASE)) > 1e-4


def test_timesteps_between_whole_numbers_are_their_own() -> None:
    model = network("a")
    first, between, second = (prediction(model, {**CASE, "timestep": torch.tensor([value])}) for value in (500.0, 500.5, 501.0))
    assert difference(first, between) > 1e-5
    assert difference(between, second) > 1e-5


def test_condition_tokens_may_be_given_the_time_of_the_video() -> None:
    zero, same = network("a"), network("a", zero_timestep=False)
    at_zero = {**CASE, "timestep": torch.zeros(1)}
    assert difference(prediction(same, at_zero), prediction(zero, at_zero)) < 1e-5
    assert difference(prediction(same, CASE), prediction(zero, CASE)) > 1e-3

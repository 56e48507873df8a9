"""The pipeline against inference written out, and what it promises about length, chance, batches and missing parts."""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tunesmith import InputError
from tunesmith_wan_s2v import WanSpeechToVideoPipeline

from . import bare, components
from .components import SOUND_LAYERS, SOUND_WIDTH, TEXT_WIDTH, random, sound
from .goldens import difference, facts

FRAMES, STEPS, GUIDANCE, SIDE = 4, 2, 4.5, 64
PICTURE = random(1, 3, SIDE, SIDE, seed=5).sigmoid()  # [0, 1]
TEXT, NEGATIVE = random(1, 12, TEXT_WIDTH, seed=6), random(1, 12, TEXT_WIDTH, seed=7)
LAYERS = SOUND_LAYERS + 1


@pytest.fixture(scope="module")
def pipe() -> WanSpeechToVideoPipeline:
    return components.pipeline()


def heard(clips: int, seed: int = 8) -> Tensor:
    return random(1, LAYERS, SOUND_WIDTH, clips * FRAMES, seed=seed)


def make(pipe: WanSpeechToVideoPipeline, clips: int = 1, seed: int = 3, **changes: Any) -> Any:
    """A tiny video of `clips` clips; frames [B, F, 3, H, W] in [0, 1] unless another output is asked for."""
    arguments: dict[str, Any] = {
        "image": PICTURE,
        "prompt_embeds": TEXT,
        "negative_prompt_embeds": NEGATIVE,
        "audio_embeds": heard(clips),
        "height": SIDE,
        "width": SIDE,
        "num_frames_per_chunk": FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "pt",
        "motion_frames": bare.MOTION,
    }
    (frames,) = pipe(**{**arguments, **changes, "return_dict": False})
    return frames


def written_out(pipe: WanSpeechToVideoPipeline, clips: int, **changes: Any) -> Tensor:
    """The same video as `make`, by the loop of the test."""
    arguments: dict[str, Any] = {"clips": clips, "frames": FRAMES, "steps": STEPS, "guidance": GUIDANCE, "seed": 3, **changes}
    frames = bare.film(pipe, PICTURE * 2 - 1, TEXT, NEGATIVE, heard(clips), **arguments)
    return ((frames + 1) / 2).clamp(0, 1).transpose(1, 2)


def test_one_clip_is_that_of_a_bare_loop(pipe: WanSpeechToVideoPipeline) -> None:
    assert difference(make(pipe), written_out(pipe, 1)) < 1e-5


def test_three_clips_are_those_of_a_bare_loop(pipe: WanSpeechToVideoPipeline) -> None:
    assert difference(make(pipe, clips=3), written_out(pipe, 3)) < 1e-5


@pytest.mark.parametrize("frames", [2, 5, 30])
def test_a_pose_video_of_any_length_is_cut_among_the_clips(pipe: WanSpeechToVideoPipeline, frames: int) -> None:
    pose = random(frames, 3, SIDE, SIDE, seed=9).sigmoid()
    expected = written_out(pipe, 2, pose=(pose * 2 - 1).movedim(0, 1)[None])
    assert difference(make(pipe, clips=2, pose_video=pose), expected) < 1e-5
    assert difference(make(pipe, clips=2), expected) > 1e-3


def test_a_video_can_go_on_from_the_picture_itself(pipe: WanSpeechToVideoPipeline) -> None:
    frames = make(pipe, clips=2, init_first_frame=True)
    assert frames.shape[1] == 2 * FRAMES
    assert difference(frames, written_out(pipe, 2, from_reference=True)) < 1e-5


def test_defaults_are_those_of_wan() -> None:
    known, frames = facts("constants")["sampling"], facts("constants")["frames"]
    defaults = {name: parameter.default for name, parameter in signature(WanSpeechToVideoPipeline.__call__).parameters.items()}
    assert defaults["fps"] == known["fps"]
    assert defaults["num_inference_steps"] == known["steps"]
    assert defaults["guidance_scale"] == known["guidance"]
    assert defaults["num_frames_per_chunk"] == frames["infer_frames_default"]
    assert defaults["motion_frames"] == frames["motion_frames_pixel"]
    assert defaults["sampling_rate"] == facts("constants")["audio"]["sample_rate"]


@pytest.mark.parametrize("clips", [1, 2, 3])
def test_a_video_has_three_frames_less_than_its_clips(pipe: WanSpeechToVideoPipeline, clips: int) -> None:
    assert make(pipe, clips).shape == (1, clips * FRAMES - 3, 3, SIDE, SIDE)


def test_73_motion_frames_go_on_from_short_clips(pipe: WanSpeechToVideoPipeline) -> None:
    frames = make(pipe, clips=2, num_inference_steps=1, motion_frames=73)
    assert frames.shape[1] == 2 * FRAMES - 3
    assert frames.isfinite().all()


def test_the_generator_decides_and_nothing_else(pipe: WanSpeechToVideoPipeline) -> None:
    first = make(pipe, clips=2)
    torch.manual_seed(99)
    assert torch.equal(make(pipe, clips=2), first)
    assert difference(make(pipe, clips=2, seed=4), first) > 1e-3


def test_clips_go_on_from_those_before(pipe: WanSpeechToVideoPipeline) -> None:
    noise = random(1, 16, 3, SIDE // 8, SIDE // 8)
    other = noise.clone()
    other[:, :, :2] *= -1
    first, second = (make(pipe, clips=3, latents=latents) for latents in (noise, other))
    last = slice(2 * FRAMES - 3, None)  # the clip whose own noise is the same
    assert difference(first[:, last], second[:, last]) > 1e-4
    assert difference(make(pipe, audio_embeds=heard(3)[..., :FRAMES], latents=noise[:, :, :1]), first[:, : FRAMES - 3]) < 1e-6


def test_each_clip_hears_its_own_part_of_the_sound(pipe: WanSpeechToVideoPipeline) -> None:
    audio = heard(2)
    other = audio.clone()
    other[..., FRAMES:] = 0
    first, second = (make(pipe, clips=2, audio_embeds=embeds) for embeds in (audio, other))
    assert torch.equal(first[:, : FRAMES - 3], second[:, : FRAMES - 3])
    assert difference(first[:, FRAMES - 3 :], second[:, FRAMES - 3 :]) > 1e-4


def test_sound_past_its_end_is_silence(pipe: WanSpeechToVideoPipeline) -> None:
    short = heard(1)
    padded = torch.cat([short, torch.zeros_like(short)], dim=-1)
    assert torch.equal(make(pipe, audio_embeds=short, num_chunks=2), make(pipe, audio_embeds=padded))
    assert torch.equal(make(pipe, audio_embeds=padded, num_chunks=1), make(pipe, audio_embeds=short))
    assert make(pipe, audio_embeds=short[..., :3]).shape == make(pipe, audio_embeds=short).shape  # the rest of the clip is silent


def test_without_guidance_nothing_negative_is_needed(pipe: WanSpeechToVideoPipeline) -> None:
    bare_pipe = components.pipeline(tokenizer=None, text_encoder=None)
    alone = make(bare_pipe, guidance_scale=1.0, negative_prompt_embeds=None)
    assert torch.equal(alone, make(pipe, guidance_scale=1.0))
    assert difference(alone, make(pipe)) > 1e-3


def test_silence_under_the_negative_text_is_not_guided_anywhere(pipe: WanSpeechToVideoPipeline) -> None:
    silent = torch.zeros_like(heard(1))
    guided = make(pipe, audio_embeds=silent, prompt_embeds=NEGATIVE)
    assert difference(guided, make(pipe, audio_embeds=silent, prompt_embeds=NEGATIVE, guidance_scale=1.0)) < 1e-5


def test_a_sound_is_encoded_for_as_many_clips_as_it_fills(pipe: WanSpeechToVideoPipeline) -> None:
    for seconds, clips in ((0.2, 1), (0.24, 1), (0.3, 2), (0.55, 3)):
        embeds = pipe.encode_audio(sound(seconds), num_frames_per_chunk=FRAMES)
        assert embeds.shape == (1, LAYERS, SOUND_WIDTH, clips * FRAMES)
    assert pipe.encode_audio(sound(0.2), num_frames_per_chunk=FRAMES, num_chunks=4).shape[-1] == 4 * FRAMES
    both = pipe.encode_audio([sound(0.2), sound(0.3)], num_frames_per_chunk=FRAMES)
    assert both.shape == (2, LAYERS, SOUND_WIDTH, 2 * FRAMES)
    assert torch.equal(both[1:], pipe.encode_audio(sound(0.3).numpy(), num_frames_per_chunk=FRAMES))
    assert torch.equal(both[0, ..., :FRAMES], pipe.encode_audio(sound(0.2)[None, None], num_frames_per_chunk=FRAMES)[0])


def test_raw_inputs_give_the_video_of_their_embeddings(pipe: WanSpeechToVideoPipeline) -> None:
    text, negative = pipe.encode_prompt("A man speaks", "ugly", max_sequence_length=12)
    embeds = pipe.encode_audio(sound(0.2), num_frames_per_chunk=FRAMES)
    raw: dict[str, Any] = {"prompt": "A man speaks", "negative_prompt": "ugly", "prompt_embeds": None, "negative_prompt_embeds": None}
    frames = make(pipe, **raw, audio=sound(0.2), audio_embeds=None, max_sequence_length=12)
    assert torch.equal(frames, make(pipe, prompt_embeds=text, negative_prompt_embeds=negative, audio_embeds=embeds))


def test_the_negative_prompt_is_wans_unless_another_or_none_is_given(pipe: WanSpeechToVideoPipeline) -> None:
    known = facts("constants")["text"]["negative_prompt_s2v"]
    _, default = pipe.encode_prompt(["a", "b"], max_sequence_length=16)
    _, wans = pipe.encode_prompt(["a", "b"], [known, known], max_sequence_length=16)
    _, empty = pipe.encode_prompt(["a", "b"], "", max_sequence_length=16)
    assert default is not None
    assert wans is not None
    assert empty is not None
    assert torch.equal(default, wans)
    assert difference(empty, wans) > 1e-3


def test_a_batch_is_its_samples_one_by_one(pipe: WanSpeechToVideoPipeline) -> None:
    pictures, texts = torch.cat([PICTURE, PICTURE.flip(-1)]), torch.cat([TEXT, TEXT.flip(1)])
    audio = torch.cat([heard(2), heard(2, seed=1)])
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    both = make(pipe, image=pictures, prompt_embeds=texts, audio_embeds=audio, generator=generators)
    for index, seed in enumerate((3, 4)):
        here = slice(index, index + 1)
        alone = make(pipe, image=pictures[here], prompt_embeds=texts[here], audio_embeds=audio[here], seed=seed)
        assert difference(both[here], alone) < 1e-4


def test_one_picture_sound_and_pose_serve_all_prompts(pipe: WanSpeechToVideoPipeline) -> None:
    pose = random(FRAMES, 3, SIDE, SIDE).sigmoid()
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    both = make(pipe, prompt_embeds=torch.cat([TEXT, TEXT]), pose_video=pose, generator=generators)
    alone = make(pipe, pose_video=pose)
    assert difference(both, torch.cat([alone, alone])) < 1e-4


def test_outputs_are_latents_tensors_arrays_or_images_of_one_video(pipe: WanSpeechToVideoPipeline) -> None:
    frames = make(pipe, clips=2)
    array, images = make(pipe, clips=2, output_type="np"), make(pipe, clips=2, output_type="pil")
    assert np.allclose(array, frames.permute(0, 1, 3, 4, 2).numpy())
    assert np.abs(np.array(images[0][2]) - array[0, 2] * 255).max() <= 0.51
    latents = make(pipe, clips=2, output_type="latent")
    assert latents.shape == (1, 16, 2, SIDE // 8, SIDE // 8)
    with torch.no_grad():
        first = torch.cat([bare.normalise(pipe, PICTURE[:, :, None] * 2 - 1), latents[:, :, :1]], dim=2)
        assert difference((bare.show(pipe, first)[:, :, 4:] + 1).transpose(1, 2) / 2, frames[:, : FRAMES - 3]) < 1e-5


def test_latents_of_one_clip_need_the_transformer_alone(pipe: WanSpeechToVideoPipeline) -> None:
    nothing = dict.fromkeys(("tokenizer", "text_encoder", "vae", "audio_encoder", "audio_processor"))
    with torch.no_grad():
        reference = bare.normalise(pipe, PICTURE[:, :, None] * 2 - 1)
    changes: dict[str, Any] = {"image": None, "image_latents": reference, "height": None, "width": None, "output_type": "latent"}
    assert difference(make(components.pipeline(**nothing), **changes), make(pipe, output_type="latent")) < 1e-5


def test_the_size_follows_the_picture(pipe: WanSpeechToVideoPipeline) -> None:
    frames = make(pipe, image=random(1, 3, 60, 120).sigmoid(), height=None, width=None, num_inference_steps=1)
    assert frames.shape[-2:] == (64, 128)


def test_a_transformer_in_training_stays_in_training_and_gets_no_gradient(pipe: WanSpeechToVideoPipeline) -> None:
    transformer = components.transformer().train()
    transformer.enable_gradient_checkpointing()
    live = components.pipeline(transformer=transformer)
    frames = make(live)
    assert difference(frames, make(pipe)) < 1e-6
    assert transformer.training
    assert not frames.requires_grad
    assert all(weights.requires_grad and weights.grad is None for weights in transformer.parameters())


def test_a_transformer_in_half_precision_denoises_in_full(pipe: WanSpeechToVideoPipeline) -> None:
    half = components.pipeline(transformer=components.transformer().to(torch.bfloat16))
    latents = make(half, output_type="latent")
    assert latents.dtype == torch.float32
    assert difference(latents, latents.to(torch.bfloat16)) > 0
    assert difference(latents, make(pipe, output_type="latent")) < 0.5


def test_sigmas_count_instead_of_steps(pipe: WanSpeechToVideoPipeline) -> None:
    frames = make(pipe, sigmas=[1.0, 1.0 - 0.999 / 2])
    assert difference(frames, make(pipe)) < 1e-3  # diffusers' own grid for two steps
    assert difference(make(pipe, sigmas=[1.0, 0.2]), frames) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_embeds": None}, "neither prompt nor prompt_embeds"),
        ({"image": None}, "neither image nor image_latents"),
        ({"audio_embeds": None}, "neither audio nor audio_embeds"),
        ({"num_frames_per_chunk": 10}, "10 frames a clip.*multiple of 4"),
        ({"motion_frames": 8}, "8 motion frames.*4n \\+ 1"),
        ({"num_chunks": 0}, "num_chunks is 0"),
        ({"output_type": "gif"}, "'gif'; allowed are latent, pt, np, pil"),
        ({"height": 40}, "64x40.*multiples of 16"),
        ({"height": None}, "only one of height and width"),
        ({"latents": torch.zeros(1, 16, 3, 8, 8)}, r"\(1, 16, 3, 8, 8\).*must be \(1, 16, 1, 8, 8\)"),
        ({"prompt_embeds": TEXT.expand(2, -1, -1), "image": PICTURE.expand(3, -1, -1, -1)}, "3 .* for 2 prompts"),
        ({"prompt_embeds": TEXT.expand(2, -1, -1), "audio_embeds": heard(1).expand(3, -1, -1, -1)}, "3 sounds for 2 prompts"),
        ({"negative_prompt_embeds": NEGATIVE.expand(2, -1, -1)}, "2 negative prompts for 1 prompts"),
        ({"image": None, "image_latents": torch.zeros(1, 16, 1, 8, 4)}, "32x64 pixels came for a video of 64x64"),
        ({"image": None, "image_latents": torch.zeros(1, 16, 1, 8, 8), "init_first_frame": True}, "give image"),
    ],
)
def test_what_does_not_fit_is_refused(pipe: WanSpeechToVideoPipeline, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(pipe, **changes)


@pytest.mark.parametrize(
    ("missing", "changes", "message"),
    [
        ("vae", {}, "without VAE"),
        ("text_encoder", {"prompt_embeds": None, "prompt": "a"}, "without text encoder or tokenizer"),
        ("audio_processor", {"audio_embeds": None, "audio": sound(0.2)}, "without audio encoder or audio processor"),
    ],
)
def test_a_missing_part_is_named_when_it_is_needed(missing: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(components.pipeline(**{missing: None}), **changes)

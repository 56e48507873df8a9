"""What is kept of a sample is what the pipeline's own parts make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith import Batch, Caption, Crop, Part, Ragged, Run, Source, Window
from tunesmith_wan_s2v import WanSpeechToVideoPipeline

from .conftest import FPS, HEIGHT, WIDTH, encoded, inputs, load, noise, plugin, sources

FRAMES = 9
MakeRun = Callable[..., Run]


def latents_of(pipe: WanSpeechToVideoPipeline, pixels: Tensor) -> Tensor:
    """Wan's encoding by its formula: the mean of the posterior, less the mean, by the deviation."""
    mean, deviation = (torch.tensor(pipe.vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        latents: Tensor = (pipe.vae.encode(pixels).latent_dist.mean - mean) / deviation
    return latents


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def test_the_latents_behind_the_first_are_trained_on_and_the_first_frame_is_the_reference(
    twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun
) -> None:
    given = inputs(FRAMES)
    batch = encoded(plugin(twin), make_run(), given, sources(FRAMES))
    whole = latents_of(pipe, given["pixels"])
    assert batch.tensor("latents").shape == (2, *plugin(twin).family().latent_shape(FRAMES, HEIGHT, WIDTH))
    close(batch.tensor("latents"), whole[:, :, 1:])
    close(batch.tensor("reference_latents"), latents_of(pipe, given["pixels"][:, :, :1]))
    assert not torch.allclose(batch.tensor("latents")[:, :, :1], whole[:, :, :1], atol=0.1)


def test_the_deviation_of_the_latents_that_are_trained_on_is_kept_where_they_are_drawn(
    twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun
) -> None:
    given = inputs(FRAMES)
    batch = encoded(plugin(twin), make_run(latents="sample"), given, sources(FRAMES))
    with torch.no_grad():
        spread = pipe.vae.encode(given["pixels"]).latent_dist.std
    expected = spread / torch.tensor(pipe.vae.config["latents_std"]).view(1, -1, 1, 1, 1)
    close(batch.tensor("latents_std"), expected[:, :, 1:])


def test_a_reference_beside_the_sample_takes_the_place_of_its_first_frame(
    twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun
) -> None:
    given = inputs(FRAMES, reference=True)
    batch = encoded(plugin(twin), make_run(), given, sources(FRAMES))
    close(batch.tensor("reference_latents"), latents_of(pipe, given["reference"][:, :, None]))
    close(batch.tensor("latents"), latents_of(pipe, given["pixels"])[:, :, 1:])


@pytest.mark.parametrize("as_clip", [False, True], ids=["picture", "clip of one frame"])
def test_a_picture_lasts_five_frames_in_silence(twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun, as_clip: bool) -> None:
    given, samples = inputs(1), sources(1)
    picture = given["pixels"]
    if as_clip:
        given = {"pixels": picture[:, :, None], "audio": noise(2, 1, 1000)}
        samples = tuple(Source(one.dataset, one.file, one.caption, one.crop, Window(0.0, 1, FPS)) for one in samples)
    batch = encoded(plugin(twin, motion=0.5), make_run(), given, samples)
    two = latents_of(pipe, picture[:, :, None].expand(-1, -1, 5, -1, -1))
    close(batch.tensor("reference_latents"), two[:, :, :1])
    close(batch.tensor("latents"), two[:, :, 1:])
    assert torch.equal(batch.tensor("audio_embeds"), torch.zeros(2, 4, 16, 4))
    assert [tuple(row.shape) for row in batch.ragged("motion_latents").values] == [(0, 4, HEIGHT // 8, WIDTH // 8)] * 2


@pytest.mark.parametrize("frames", [5, 9, 37])
def test_the_sound_of_the_frames_that_are_trained_on_is_what_the_pipeline_hears(
    twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun, frames: int
) -> None:
    given = inputs(frames)
    ours = encoded(plugin(twin), make_run(), given, sources(frames)).tensor("audio_embeds")
    behind_first = given["audio"][:, :, 1000:]  # a sixteenth of a second: the first frame is the reference
    expected = pipe.encode_audio(behind_first, num_frames_per_chunk=frames - 1, num_chunks=1)
    assert ours.shape == (2, 4, 16, frames - 1)
    close(ours, expected)
    assert not torch.allclose(ours[0], ours[1])


def test_sound_follows_the_rate_of_the_clip(twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun) -> None:
    given = {**inputs(FRAMES), "audio": noise(2, 1, round(FRAMES / 25 * 16_000), seed=1)}
    samples = tuple(Source(one.dataset, one.file, one.caption, one.crop, Window(0.0, FRAMES, 25.0)) for one in sources(FRAMES))
    ours = encoded(plugin(twin), make_run(), given, samples).tensor("audio_embeds")
    close(ours, pipe.encode_audio(given["audio"][:, :, 640:], num_frames_per_chunk=8, num_chunks=1, fps=25.0))


def test_motion_is_the_73_frames_that_end_with_the_first_of_the_clip(twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun) -> None:
    given = inputs(FRAMES, history=72)
    samples = sources(FRAMES, start=4.5)  # 72 frames in
    rows = encoded(plugin(twin, motion=1), make_run(), given, samples).ragged("motion_latents").values
    before = torch.cat([given["history"], given["pixels"][:, :, :1]], dim=2)
    assert before.shape[2] == 73
    expected = latents_of(pipe, before)
    for row, whole in zip(rows, expected, strict=True):
        assert row.shape == (19, 4, HEIGHT // 8, WIDTH // 8)
        close(row.transpose(0, 1), whole)


def test_a_clip_whose_history_is_not_all_there_has_no_motion(twin: Path, make_run: MakeRun) -> None:
    late, early = sources(FRAMES, start=4.5)[0], sources(FRAMES, start=4.5 - 1 / FPS)[1]
    rows = encoded(plugin(twin, motion=1), make_run(), inputs(FRAMES, history=72), (late, early)).ragged("motion_latents").values
    assert [len(row) for row in rows] == [19, 0]


def test_motion_that_cannot_be_packed_is_none(twin: Path, make_run: MakeRun) -> None:
    small = Crop((80, 48), (80, 48), (0, 0))
    samples = tuple(Source(one.dataset, one.file, one.caption, small, one.window) for one in sources(FRAMES))
    given = {key: value[..., :48, :80] if value.ndim > 3 else value for key, value in inputs(FRAMES, history=72).items()}
    rows = encoded(plugin(twin, motion=1), make_run(), given, samples).ragged("motion_latents").values
    assert [tuple(row.shape) for row in rows] == [(0, 4, 6, 10)] * 2


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_poses_are_encoded_as_the_pipeline_encodes_them(twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun, frames: int) -> None:
    given = inputs(frames, control=True)
    rows = encoded(plugin(twin), make_run(controlled=True), given, sources(frames)).ragged("control_latents").values
    control = given["control"] if frames > 1 else given["control"][:, :, None].expand(-1, -1, 5, -1, -1)
    trained = control[:, :, 1:]
    expected = latents_of(pipe, torch.cat([trained[:, :, :1], trained], dim=2))[:, :, 1:]
    for row, whole in zip(rows, expected, strict=True):
        close(row.transpose(0, 1), whole)
    bare = encoded(plugin(twin), make_run(controlled=True), inputs(frames), sources(frames))
    assert [len(row) for row in bare.ragged("control_latents").values] == [0, 0]


def test_prompt_embeddings_are_the_pipelines_without_its_zeros(twin: Path, pipe: WanSpeechToVideoPipeline, make_run: MakeRun) -> None:
    texts = ("A singer  &amp;amp; a\nguitar", "", "x" * 600)
    captions = (*(Caption(text) for text in texts), Caption("blurred", negative=True))
    family, run = plugin(twin), make_run()
    load(family, run, Part.ENCODERS)
    rows = family.encode_batch(run, Batch(captions=captions, wanted=frozenset({"prompt_embeds"}))).ragged("prompt_embeds").values
    expected, negative = pipe.encode_prompt(list(texts), ["blurred"] * 3)
    assert expected.shape[1] == 512
    assert negative is not None
    assert [len(row) for row in rows][1:3] == [1, 512]  # the end of the text alone, and as much as is read
    for row, whole in zip(rows, [*expected, negative[0]], strict=True):
        close(row, whole[: len(row)])
        assert not whole[len(row) :].any()


def test_only_what_is_wanted_is_encoded_and_nothing_loads_the_encoders_for_nothing(twin: Path, make_run: MakeRun) -> None:
    family, run = plugin(twin), make_run()
    batch = family.encode_batch(run, Batch(captions=(Caption("a"),), wanted=frozenset({"mask"})))  # a run without encoders
    assert batch.fields == {}
    load(family, run, Part.ENCODERS)
    given = {"audio": inputs(FRAMES)["audio"]}
    batch = family.encode_batch(run, Batch(sources(FRAMES), (), given, wanted=frozenset({"audio_embeds"})))
    assert set(batch.fields) == {"audio_embeds"}


def test_a_batch_without_pixels_is_a_mistake_that_is_named(twin: Path, make_run: MakeRun) -> None:
    family, run = plugin(twin), make_run()
    load(family, run, Part.ENCODERS)
    for key in ("latents", "reference_latents"):
        with pytest.raises(RuntimeError, match="no pixels"):
            family.encode_batch(run, Batch(sources(FRAMES), (), {}, wanted=frozenset({key})))


def test_ragged_fields_are_ragged(twin: Path, make_run: MakeRun) -> None:
    family = plugin(twin, motion=0.5)
    run = make_run(controlled=True)
    batch: Any = encoded(family, run, inputs(FRAMES, history=72, control=True), sources(FRAMES))
    for field in family.fields(run):
        assert isinstance(batch.fields[field.key], Ragged) is field.ragged

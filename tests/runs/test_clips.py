"""Clips on the toy family: a given first frame, latents drawn from the autoencoder's distribution, and exact resume of all of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.toyvideo import ToyVideoFamily, clip, pooled, toy_checkpoint
from tunesmith import InputError, RunFailed
from tunesmith.config import ConfigErrors, load_config
from tunesmith.session import assemble

from .conftest import LORA, Result, start_run
from .previewing import clips_text
from .test_resume import assert_same_run, stopped_after
from .watching import Watched, watched

__all__ = ["toy_checkpoint", "watched"]

FRAMES = {"0": 9, "1": 9, "2": 5, "3": 5}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Four clips of two lengths."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for stem, frames in FRAMES.items():
        generator = np.random.default_rng(int(stem))
        clip(folder / f"{stem}.npy", generator.integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8), f"clip {stem}")
    return folder


@pytest.fixture
def start(tmp_path, toy_checkpoint, clips, monkeypatch):
    """Run a config on the clips."""
    monkeypatch.chdir(tmp_path)

    def begin(name: str, extra: str = "", *overrides: str) -> Result:
        return start_run(tmp_path / f"{name}.toml", clips_text(toy_checkpoint, clips, extra=extra, steps=6), overrides)

    return begin


def means(one: Watched) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of a batch's latents, from the files."""
    frames = one.field("latents").shape[2] * 4 - 3
    pixels = [torch.from_numpy(np.load(source.file)[:frames]).permute(3, 0, 1, 2) / 127.5 - 1 for source in one.step.batch.sources]
    return pooled(torch.stack(pixels))


def test_clips_and_pictures_train_side_by_side_and_are_sampled(start, pictures, watched):
    beside = f"[[datasets]]\nname = 'pictures'\npath = {str(pictures)!r}\nresolution = 32\n[validation]\nprompts = {{ one = 'a clip' }}\n"
    result = start("both", beside, "run.steps=16")
    assert {(one.dataset, one.field("latents").shape[2]) for one in watched} == {("clips", 3), ("clips", 2), ("pictures", 1)}
    assert np.mean([result.losses[step] for step in range(12, 17)]) < np.mean([result.losses[step] for step in range(1, 6)])
    assert result.pictures(16)["one-32x32-seed0.png"] != result.pictures(0)["one-32x32-seed0.png"]
    assert all(step.keep is None and step.sigma.shape == (2,) for step in (one.step for one in watched))


def test_a_given_first_frame_is_clean_and_has_no_loss(start, watched):
    start("given", "", "datasets.0.is_i2v=true")
    start("plain", "")
    given, plain = watched[:6], watched[6:]
    assert {one.step.sigma.shape[2] for one in given} == {2, 3}
    for one, other in zip(given, plain, strict=True):
        step, latents = one.step, one.field("latents")
        frames = latents.shape[2]
        assert step.sigma.shape == (2, 1, frames, 1, 1)
        assert torch.equal(step.noisy[:, :, 0], latents[:, :, 0])
        assert torch.equal(step.noisy[:, :, 1:], other.step.noisy[:, :, 1:])
        assert torch.equal(step.sigma[:, 0, :, 0, 0], other.step.sigma[:, None] * torch.tensor([0] + [1] * (frames - 1)))
        assert torch.equal(step.keep, (torch.arange(4 * frames) < 4).expand(2, -1))  # 2x2 tokens a frame
        squares = (step.prediction - (step.noise - latents)).square()
        squares[:, :, 0] = 0
        assert one.total == pytest.approx(squares.mean().item(), rel=1e-6)


def test_the_first_frame_gets_no_gradient(start, watched):
    start("still", "", "datasets.0.is_i2v=true", "run.steps=1")
    one = watched[0]
    prediction = one.step.prediction.detach().requires_grad_()
    weights = one.loss.weights["given"]
    ((prediction - one.step.target).square() * weights).mean().backward()
    assert bool((prediction.grad[:, :, 0] == 0).all())
    assert bool((prediction.grad[:, :, 1:] != 0).any())


@pytest.mark.parametrize("cache", ["true", "false"])
def test_latents_are_drawn_from_the_distribution_anew_each_time(start, watched, cache):
    start("drawn", "", "run.latents='sample'", f"run.cache={cache}", "run.steps=8")
    seen: dict[tuple[str, ...], list[torch.Tensor]] = {}
    for one in watched:
        mean, deviation = means(one)
        torch.testing.assert_close(one.field("latents_std"), deviation, atol=1e-5, rtol=0)
        normal = (one.field("latents") - mean) / deviation
        seen.setdefault(tuple(source.file.stem for source in one.step.batch.sources), []).append(normal)
        assert torch.equal(one.step.target, one.step.noise - one.field("latents"))
    every = torch.cat([normal.flatten() for drawn in seen.values() for normal in drawn])
    assert abs(float(every.mean())) < 0.1
    assert abs(float(every.std()) - 1) < 0.1
    correlation = torch.corrcoef(torch.stack([every[:-1], every[1:]]))[0, 1]
    assert abs(float(correlation)) < 0.1
    twice = next(drawn for drawn in seen.values() if len(drawn) > 1)
    assert not torch.allclose(twice[0], twice[1])
    one = watched[0]
    assert not torch.allclose((one.field("latents") - means(one)[0]) / means(one)[1], one.step.noise)


def test_cached_and_uncached_draw_the_same(start):
    settings = ("run.latents='sample'", "datasets.0.is_i2v=true")
    cached, fresh = start("cached", "", *settings), start("fresh", "", *settings, "run.cache=false")
    assert cached.losses == pytest.approx(fresh.losses, rel=1e-4)


def test_the_mean_is_the_default_and_draws_nothing(start, watched):
    start("mean", "", "run.steps=2")
    for one in watched:
        torch.testing.assert_close(one.field("latents"), means(one)[0], atol=1e-5, rtol=0)
        assert "latents_std" not in one.step.batch.fields


def test_a_clip_of_one_frame_has_nothing_left_to_train(start):
    with pytest.raises(RunFailed, match="is_i2v: a clip of one latent frame has nothing to train"):
        start("short", "", "datasets.0.is_i2v=true", "datasets.0.num_frames=1")


@pytest.mark.parametrize("cache", ["true", "false"])
def test_all_of_it_resumes_bit_for_bit(start, clips, watched, cache, monkeypatch):
    kept = f"""
[[datasets]]
kind = "toyclips"
name = "kept"
path = {str(clips)!r}
resolution = 32
num_frames = 5
is_regularisation = true
weight = 1

[checkpoints]
every = 2
"""
    overrides = (
        "run.latents='sample'",
        "datasets.0.is_i2v=true",
        "datasets.0.weight=2",
        "run.gradient_accumulation=2",
        f"run.cache={cache}",
    )
    straight = start("straight", LORA + kept, *overrides)
    assert {(one.dataset, one.step.keep is None) for one in watched} == {("clips", False), ("kept", True)}
    with stopped_after(4, monkeypatch):
        start("resumed", LORA + kept, *overrides)
    assert_same_run(straight, start("resumed", LORA + kept, *overrides), 6)


def test_a_family_that_cannot_is_named_with_file_and_line(tmp_path, toy_checkpoint, clips, monkeypatch):
    monkeypatch.setattr(ToyVideoFamily, "image_to_video", False)
    monkeypatch.setattr(ToyVideoFamily, "latent_distribution", False)
    file = tmp_path / "refused.toml"
    config = clips_text(toy_checkpoint, clips).replace("num_frames = 9", "num_frames = 9\nis_i2v = true")
    file.write_text(config.replace("log_every = 1", 'log_every = 1\nlatents = "sample"'))
    with pytest.raises(ConfigErrors) as refused:
        assemble(load_config(file))
    told = str(refused.value)
    lines = file.read_text().splitlines()
    for line in ('latents = "sample"', "is_i2v = true"):
        assert f"refused.toml:{lines.index(line) + 1}" in told
    assert "the autoencoder of toyvideo gives no distribution to draw from" in told
    assert "toyvideo cannot be trained with the first frame given" in told


def test_sana_has_no_distribution_to_draw_latents_from(train):
    with pytest.raises(
        ConfigErrors, match=r"latents = \"sample\": the autoencoder of sana gives no distribution to draw from; use \"mean\""
    ):
        train("sampled", "", "run.latents='sample'")


@pytest.mark.parametrize("cache", ["true", "false"])
def test_masks_of_clips_are_pictures_for_all_frames_or_clips(start, clips, watched, cache):
    masks = clips.with_name("masks")
    masks.mkdir()
    half = np.zeros((32, 32), np.uint8)
    half[:, 16:] = 255
    Image.fromarray(half).save(masks / "0.png")
    moving = np.stack([np.full((32, 32, 3), 40 * frame, np.uint8) for frame in range(5)])
    np.save(masks / "2.npy", moving)
    table = f"[[datasets]]\nkind = 'mask'\nof = 'clips'\npath = {str(masks)!r}\nmissing = 'full'\n"
    start("masked", table, f"run.cache={cache}")
    expected = {
        "0": torch.from_numpy(half).expand(9, -1, -1),
        "1": torch.full((9, 32, 32), 255),
        "2": torch.from_numpy(moving[..., 0]),
        "3": torch.full((5, 32, 32), 255),
    }
    for one in watched:
        for row, source in enumerate(one.step.batch.sources):
            assert torch.equal(one.field("mask")[row, 0].int(), expected[source.file.stem].int())
    assert {source.file.stem for one in watched for source in one.step.batch.sources} == set(expected)


def test_a_dataset_that_cannot_give_what_a_field_is_made_of_is_named(start):
    with pytest.raises(InputError, match=r"'clips' is of kind 'toyclips' and gives no audio, of which 'toyvideo' makes the field 'sound'"):
        start("deaf", "", "model.sound=true")

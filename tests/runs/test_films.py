"""Sana Video on films and pictures: what is trained, saved, sampled and gone on with."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import SanaVideoPipeline, SanaVideoTransformer3DModel
from PIL import Image
from torch import Tensor

from tunesmith.config import ConfigErrors, load_config
from tunesmith.session import assemble
from tunesmith_sana_video import SanaVideoFamily, SanaVideoModel

from .conftest import LORA
from .filming import film, films, films_text, twin_of
from .test_resume import assert_same_run, stopped_after
from .test_trace import SETTINGS, assert_as_recorded
from .watching import Watched, watched

__all__ = ["film", "films", "twin_of", "watched"]

FAMILY = "sana_video"


def again(one: Watched, transformer: Any) -> Tensor:
    """What a transformer predicts of a step's noisy latents."""
    family = one.run.family
    assert isinstance(family, SanaVideoFamily)
    with torch.no_grad():
        return SanaVideoModel(family, transformer.eval(), {}).predict(one.step.noisy, one.step.sigma, one.step.batch)


def test_a_lora_of_three_steps_loads_into_the_pipeline_and_predicts_as_the_trainer(film, twin_of, watched):
    result = film(FAMILY, "lora", LORA, "run.steps=3", "optimizer.lr=0.05", "optimizer.warmup=0")
    one = watched[-1]
    pipeline = SanaVideoPipeline.from_pretrained(twin_of(FAMILY))
    untrained = again(one, pipeline.transformer)
    pipeline.load_lora_weights(result.path / "final")
    ours = again(one, one.run.model.denoiser)
    assert (ours - untrained).abs().max() > 0.01
    torch.testing.assert_close(again(one, pipeline.transformer), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_full_fine_tune_reloads_into_the_pipeline(film, twin_of, watched, weights):
    result = film(FAMILY, "full", "", "run.steps=3", f"run.weights='{weights}'", "run.gradient_checkpointing=true")
    transformer = SanaVideoTransformer3DModel.from_pretrained(result.path / "final" / "transformer")
    pipeline = SanaVideoPipeline.from_pretrained(twin_of(FAMILY), transformer=transformer)
    expected, found = watched[-1].run.model.denoiser.state_dict(), pipeline.transformer.state_dict()
    before = SanaVideoTransformer3DModel.from_pretrained(twin_of(FAMILY), subfolder="transformer").state_dict()
    assert found.keys() == expected.keys() == before.keys()
    assert all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in expected.items())
    assert not all(torch.equal(found[name], value) for name, value in before.items())
    if weights == "fp32":
        torch.testing.assert_close(again(watched[-1], transformer), again(watched[-1], watched[-1].run.model.denoiser), rtol=0, atol=1e-6)


def test_pictures_train_beside_films_of_several_sizes_and_lengths(film, pictures, watched):
    stills = f"[[datasets]]\nname = 'stills'\npath = {str(pictures)!r}\nresolution = 64\n"
    result = film(FAMILY, "both", stills, "run.steps=16", "datasets.0.repeats=2")
    shapes = {(one.dataset, *one.field("latents").shape[2:]) for one in watched}
    assert {shape for shape in shapes if shape[0] == "films"} == {("films", 5, 8, 12), ("films", 5, 12, 8), ("films", 3, 8, 12)}
    assert {shape for shape in shapes if shape[0] == "stills"} == {("stills", 1, 8, 8), ("stills", 1, 6, 12)}
    assert all(np.isfinite(loss) for loss in result.losses.values())


def test_noise_levels_of_ones_own_are_refused_by_name(tmp_path, twin_of, films):
    file = tmp_path / "noise.toml"
    file.write_text(films_text(FAMILY, twin_of(FAMILY), films, "[noise]\nshift = 3.0\n"))
    with pytest.raises(ConfigErrors, match=r"noise\.toml:\d+: .*sana_video refuses noise: .*the checkpoint's own flow schedule"):
        assemble(load_config(file))


def test_sigmas_follow_the_checkpoints_shift(film, watched):
    film(FAMILY, "shifted", "", "run.steps=30")
    sigmas = torch.cat([one.step.sigma for one in watched])
    assert watched[0].run.family.noise_shift == 8.0
    assert 0.75 < float(sigmas.median()) < 0.96  # 8 * 0.5 / (1 + 7 * 0.5) = 0.889, where it would be 0.5 without a shift


def test_validation_films_prompts_and_first_frames(film, films, tmp_path):
    Image.fromarray(np.full((80, 70, 3), 90, np.uint8)).save(tmp_path / "first.png")
    table = """
[plugins.video]
[validation]
at_start = false
prompts = { red = "a red square" }
num_frames = 9
steps = 2
resolutions = ["96x64"]
[[validation.samples]]
name = "from"
prompt = "a grey wall"
reference = "first.png"
"""
    result = film(FAMILY, "filmed", table, "run.steps=1")
    folder = result.path / "validation" / "step-000001"
    found = {file.stem: file for file in folder.iterdir() if file.suffix != ".png"}
    assert set(found) == {"red-96x64-seed0", "from-96x64-seed0"}
    for file in found.values():
        with av.open(str(file)) as container:
            shown = list(container.decode(video=0))
            assert (len(shown), shown[0].width, shown[0].height) == (9, 96, 64)
            assert container.streams.video[0].average_rate == 16


@pytest.mark.parametrize(("extra", "cache"), [("", "false"), (LORA, "true")], ids=["full without a cache", "lora with a cache"])
def test_stop_and_resume_equals_never_stopping(film, monkeypatch, extra, cache):
    settings = (
        "checkpoints.every=2",
        "run.gradient_accumulation=2",
        "run.latents='sample'",
        "datasets.0.is_i2v=true",
        f"run.cache={cache}",
    )
    straight = film(FAMILY, "straight", extra, *settings)
    with stopped_after(4, monkeypatch):
        film(FAMILY, "resumed", extra, *settings)
    assert_same_run(straight, film(FAMILY, "resumed", extra, *settings), 6)


@pytest.mark.parametrize(("name", "extra"), [("full", ""), ("lora", LORA)])
def test_no_bit_of_the_recorded_losses_moves(film, name, extra):
    settings = (setting for setting in SETTINGS if not setting.startswith("datasets"))
    assert_as_recorded(f"{FAMILY} {name}", film(FAMILY, name, extra, *settings))

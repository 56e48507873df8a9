"""What the family answers without weights, for local folders and for the published checkpoint while offline."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import SanaVideoPipeline
from pydantic import ValidationError

from tunesmith import Batch, InputError, Part, Ragged, Run, TokenGrid
from tunesmith_sana_video import SanaVideo, SanaVideoFamily, SanaVideoSettings
from tunesmith_sana_video.variants import VARIANTS

from .conftest import load, plugin


def bare(twin: Path, folder: Path) -> Path:
    """The checkpoint's configurations alone."""
    return shutil.copytree(twin, folder, ignore=shutil.ignore_patterns("*.safetensors"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_published_checkpoint_answers_offline() -> None:
    family = SanaVideo("sana_video", SanaVideoSettings(variant="2b-480p")).family()
    assert VARIANTS == {"2b-480p": "Efficient-Large-Model/SANA-Video_2B_480p_diffusers"}
    assert family.known_by_heart
    told = family.defaults
    assert (told.size, told.frames, told.fps, told.guidance, told.sampling_steps) == ((832, 480), 81, 16.0, 6.0, 50)
    assert (family.alignment, family.noise_shift, family.timestep_scale) == (16, 8.0, 1000.0)
    assert family.latent_shape(81, 480, 832) == (16, 21, 60, 104)
    assert family.token_grid(81, 480, 832) == TokenGrid(21, 30, 52)
    assert sum(parameter.numel() for parameter in family.on_meta().parameters()) / 1e9 == pytest.approx(2.06, rel=0.005)


@pytest.mark.parametrize(("frames", "rounded"), [(1, 1), (8, 1), (9, 9), (16, 9), (17, 17), (75, 73), (80, 73), (81, 81), (88, 81)])
def test_frames_are_rounded_down_to_one_more_than_a_multiple_of_eight(twin: Path, frames: int, rounded: int) -> None:
    assert plugin(twin).family().round_frames(frames) == rounded


def test_a_latent_frame_stands_for_four_frames_but_the_first(twin: Path) -> None:
    family = plugin(twin).family()
    assert family.frame_spans(9) == (range(1), range(1, 5), range(5, 9))
    assert family.frame_spans(1) == (range(1),)


def test_the_meta_denoiser_has_the_checkpoints_shapes(twin: Path, pipe: SanaVideoPipeline) -> None:
    meta = plugin(twin).family().on_meta().state_dict()
    assert {name: value.shape for name, value in meta.items()} == {
        name: value.shape for name, value in pipe.transformer.state_dict().items()
    }


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("latents_mean", None, "needs 4 numbers as latents_mean in its configuration and has none"),
        ("latents_std", [1.0, 2.0], "needs 4 numbers as latents_std in its configuration and has 2"),
        ("latents_mean", [0.0] * 16, "needs 4 numbers as latents_mean in its configuration and has 16"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(twin: Path, tmp_path: Path, key: str, value: object, told: str) -> None:
    folder = bare(twin, tmp_path / "other")
    edit(folder / "vae/config.json", **{key: value})
    with pytest.raises(InputError, match=told):
        plugin(folder).family()


def test_statistics_that_the_file_leaves_out_are_not_taken_from_the_class(twin: Path, tmp_path: Path) -> None:
    folder = bare(twin, tmp_path / "other")
    edit(folder / "transformer/config.json", in_channels=16)
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "latents_std"} | {"z_dim": 16})
    )
    edit(folder / "vae/config.json", latents_mean=[0.0] * 16)
    with pytest.raises(InputError, match="needs 16 numbers as latents_std in its configuration and has none"):
        plugin(folder).family()


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("transformer", {"_class_name": "SanaTransformer2DModel"}, "trains a SanaVideoTransformer3DModel"),
        ("transformer", {"guidance_embeds": True}, "is distilled"),
        ("transformer", {"in_channels": 32}, "makes 4 channels.*takes 32"),
        (
            "vae",
            {"_class_name": "AutoencoderKLLTX2Video"},
            "holds a AutoencoderKLLTX2Video; the family sana_video needs an AutoencoderKLWan",
        ),
    ],
)
def test_what_the_family_cannot_train_is_refused(twin: Path, tmp_path: Path, file: str, change: dict[str, object], complaint: str) -> None:
    folder = bare(twin, tmp_path / "other")
    edit(folder / file / "config.json", **change)
    with pytest.raises(InputError, match=complaint):
        plugin(folder).family()


def test_a_text_encoder_of_another_width_is_refused(twin: Path, tmp_path: Path) -> None:
    folder = bare(twin, tmp_path / "other")
    edit(folder / "text_encoder/config.json", hidden_size=48)
    with pytest.raises(InputError, match=r"makes 48 channels.*takes 32"):
        plugin(twin, text_encoder=str(folder)).family()


@pytest.mark.parametrize("settings", [{}, {"path": "a/b", "variant": "2b-480p"}, {"variant": "5b"}, {"path": "a/b", "motion_score": -1}])
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SanaVideoSettings.model_validate(settings)


@pytest.mark.parametrize(("instruction", "limit"), [(False, 300), (True, 298)])
def test_captions_are_counted_with_their_motion_score(twin: Path, instruction: bool, limit: int) -> None:
    family = plugin(twin, complex_human_instruction=instruction, motion_score=5).family()
    assert family.caption_tokens == limit
    bos = 0 if instruction else 1
    assert family.count_tokens(["A cat ", ""]) == [len("a cat  motion score: 5.") + bos, bos]


def test_sizes_references_and_schedulers_that_cannot_be_used_are_problems_of_the_config(twin: Path, make_run: Callable[..., Run]) -> None:
    family = plugin(twin)
    datasets = (SimpleNamespace(kind="video"), SimpleNamespace(kind="reference"))
    run = make_run(datasets=datasets, resolutions=("96x64", "72x64"), scheduler="UniPC")
    found = dict(family.check(run.config, family.family()))
    assert found.keys() == {("datasets", 1, "kind"), ("validation", "resolutions", 1), ("validation", "scheduler")}
    assert "set is_i2v on the clips" in found["datasets", 1, "kind"]
    assert "use 64x64" in found["validation", "resolutions", 1]


def test_the_twin_is_small_quick_and_a_function_of_its_seed(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    folders = [SanaVideoFamily.tiny(tmp_path / str(number), seed) for number, seed in enumerate((0, 0, 1))]
    family, run = plugin(folders[0]), make_run()
    networks = [*load(family, run, Part.ENCODERS).encoders.values(), load(family, run, Part.DENOISER).denoiser]
    assert sum(parameter.numel() for network in networks for parameter in network.parameters()) <= 1_000_000
    first, same, other = ((folder / "transformer/diffusion_pytorch_model.safetensors").read_bytes() for folder in folders)
    assert first == same != other


def test_a_training_step_of_the_twin_takes_less_than_a_second(twin: Path, make_run: Callable[..., Run]) -> None:
    model = load(plugin(twin), make_run(), Part.DENOISER)
    model.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.denoiser.parameters())
    batch = Batch(fields={"prompt_embeds": Ragged([torch.randn(7, 32), torch.randn(3, 32)])})
    started = time.perf_counter()
    model.predict(torch.randn(2, 4, 3, 8, 12), torch.tensor([0.2, 0.7]), batch).square().mean().backward()
    optimizer.step()
    assert time.perf_counter() - started < 1

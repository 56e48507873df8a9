"""What the family answers without weights, for local folders and for published checkpoints while offline."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from diffusers import SanaPipeline, SanaTransformer2DModel
from huggingface_hub import constants
from pydantic import ValidationError

from tunesmith import InputError, Part, Run, TokenGrid
from tunesmith_sana import Sana, SanaFamily, SanaSettings
from tunesmith_sana.variants import VARIANTS, VariantName

from .conftest import load, plugin


def bare(twin: Path, folder: Path) -> Path:
    """The checkpoint's configurations alone."""
    return shutil.copytree(twin, folder, ignore=shutil.ignore_patterns("*.safetensors"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def published(variant: VariantName) -> SanaFamily:
    family = Sana("sana", SanaSettings(variant=variant)).family()
    assert isinstance(family, SanaFamily)
    return family


def test_a_folder_of_configurations_is_enough(twin: Path, tmp_path: Path) -> None:
    family = plugin(bare(twin, tmp_path / "bare")).family()
    assert (family.alignment, family.noise_shift, family.timestep_scale) == (8, 3.0, 1000.0)
    assert family.latent_shape(1, 64, 96) == (4, 8, 12)
    assert family.token_grid(1, 64, 96) == TokenGrid(1, 8, 12)
    assert family.defaults.size == (64, 64)
    assert (family.defaults.guidance, family.defaults.sampling_steps) == (4.5, 20)


def test_the_meta_denoiser_has_the_checkpoints_shapes(twin: Path, pipe: SanaPipeline) -> None:
    meta = plugin(twin).family().on_meta()
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}
    assert {name: value.shape for name, value in meta.state_dict().items()} == {
        name: value.shape for name, value in pipe.transformer.state_dict().items()
    }


def test_the_patch_counts_in_alignment_and_token_grid(twin: Path, tmp_path: Path) -> None:
    folder = bare(twin, tmp_path / "patched")
    edit(folder / "transformer/config.json", patch_size=2)
    family = plugin(folder).family()
    assert (family.alignment, family.token_grid(1, 64, 96)) == (16, TokenGrid(1, 4, 6))


@pytest.mark.parametrize(
    ("name", "shift"), [("FlowMatchEulerDiscreteScheduler", {"shift": 2.5}), ("UniPCMultistepScheduler", {"flow_shift": 2.5})]
)
def test_the_shift_is_the_schedulers(twin: Path, tmp_path: Path, name: str, shift: dict[str, float]) -> None:
    folder = bare(twin, tmp_path / "shifted")
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name, **shift}))
    assert plugin(folder).family().noise_shift == 2.5


def test_every_variant_has_a_name_in_the_settings_and_answers_offline() -> None:
    assert set(get_args(VariantName)) == set(VARIANTS) == set(published("1.6b-1024").variants)
    for variant in get_args(VariantName):
        family = published(variant)
        edge = int(next(part for part in variant.split("-") if part in {"512", "1024", "2048", "4096"}))
        assert family.defaults.size == (edge, edge)
        assert (family.alignment, family.latent_shape(1, 1024, 512)) == (32, (32, 32, 16))
        assert family.known_by_heart


@pytest.mark.parametrize(
    ("variant", "billions"), [("600m-1024", 0.59), ("1.6b-1024", 1.60), ("1.5-1.6b-1024", 1.60), ("1.5-4.8b-1024", 4.72)]
)
def test_published_sizes(variant: VariantName, billions: float) -> None:
    parameters = sum(parameter.numel() for parameter in published(variant).on_meta().parameters())
    assert parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_published_facts_of_large_pictures() -> None:
    assert published("1.6b-1024").noise_shift == 3.0
    assert published("1.6b-4096").noise_shift == 6.0
    assert published("1.6b-2048").configs["transformer"]["interpolation_scale"] == 1.0
    assert published("1.6b-1024").configs["transformer"]["interpolation_scale"] is None


def test_without_the_hub_a_published_checkpoint_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    started = time.perf_counter()
    assert published("1.6b-1024").known_by_heart
    assert time.perf_counter() - started < 2


def test_an_unknown_id_offline_is_told_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"someone/sana at v2 is not in the local cache.*HF_HUB_OFFLINE is set.*local folder"):
        Sana("sana", SanaSettings(path="someone/sana", revision="v2")).family()


@pytest.mark.parametrize("path", ["no/such/repository", "/no/such/folder"])
def test_what_is_neither_a_folder_nor_an_id_is_told(path: str) -> None:
    with pytest.raises(InputError, match="neither a local folder nor a Hub id"):
        Sana("sana", SanaSettings(path=path)).family()


@pytest.mark.parametrize("missing", ["transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_missing_configuration_is_named(twin: Path, tmp_path: Path, missing: str) -> None:
    folder = bare(twin, tmp_path / "broken")
    (folder / missing).unlink()
    with pytest.raises(InputError, match=f"broken has no {missing}"):
        plugin(folder).family()


def test_a_broken_configuration_is_named(twin: Path, tmp_path: Path) -> None:
    folder = bare(twin, tmp_path / "broken")
    (folder / "vae/config.json").write_text("{")
    with pytest.raises(InputError, match=r"vae/config\.json is no JSON"):
        plugin(folder).family()


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("transformer", {"_class_name": "WanTransformer3DModel"}, "trains a SanaTransformer2DModel"),
        ("transformer", {"guidance_embeds": True}, "distilled Sana-Sprint"),
        ("transformer", {"in_channels": 32}, "makes 4 channels.*takes 32"),
        ("vae", {"_class_name": "AutoencoderKL"}, "needs an AutoencoderDC"),
    ],
)
def test_what_the_family_cannot_train_is_refused(twin: Path, tmp_path: Path, file: str, change: dict[str, object], complaint: str) -> None:
    folder = bare(twin, tmp_path / "other")
    edit(folder / file / "config.json", **change)
    with pytest.raises(InputError, match=complaint):
        plugin(folder).family()


@pytest.mark.parametrize("arguments", [{}, {"path": "a/b", "variant": "1.6b-1024"}])
def test_settings_name_the_checkpoint_once(arguments: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="either `path` or `variant`"):
        SanaSettings.model_validate(arguments)


def test_the_twin_is_small_quick_and_a_function_of_its_seed(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    started = time.perf_counter()
    folders = [SanaFamily.tiny(tmp_path / str(number), seed) for number, seed in enumerate((0, 0, 1))]
    assert time.perf_counter() - started < 3
    sana, run = plugin(folders[0]), make_run()
    networks = [*load(sana, run, Part.ENCODERS).encoders.values(), load(sana, run, Part.DENOISER).denoiser]
    assert sum(parameter.numel() for network in networks for parameter in network.parameters()) <= 1_000_000
    first, same, other = ((folder / "transformer/diffusion_pytorch_model.safetensors").read_bytes() for folder in folders)
    assert first == same != other


def test_the_denoiser_is_the_real_class(twin: Path, make_run: Callable[..., Run]) -> None:
    assert type(load(plugin(twin), make_run(), Part.DENOISER).denoiser) is SanaTransformer2DModel

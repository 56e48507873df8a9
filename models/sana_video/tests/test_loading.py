"""Parts, precisions, weights in other shapes, and what the cache is told of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SanaVideoPipeline, SanaVideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith import InputError, Part, Run

from .conftest import load, plugin

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(twin: Path, tmp_path: Path) -> Path:
    """A copy of the twin to change."""
    return shutil.copytree(twin, tmp_path / "checkpoint")


def rewrite(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_each_part_has_its_own_networks_all_frozen(twin: Path, make_run: Callable[..., Run]) -> None:
    family, run = plugin(twin), make_run()
    parts = {part: load(family, run, part) for part in Part}
    assert {part: sorted(model.encoders) for part, model in parts.items()} == {
        Part.ENCODERS: ["text_encoder", "vae"],
        Part.DENOISER: [],
        Part.DECODER: ["vae"],
    }
    networks = [*parts[Part.ENCODERS].encoders.values(), parts[Part.DENOISER].denoiser]
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())
    assert type(parts[Part.DENOISER].denoiser) is SanaVideoTransformer3DModel


@pytest.mark.parametrize(("weights", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("shape", [(2, 32), (1, 2, 32)])
def test_the_last_table_is_taken_in_both_shapes(
    checkpoint: Path, twin: Path, make_run: Callable[..., Run], shape: tuple[int, ...], weights: str, dtype: torch.dtype
) -> None:
    rewrite(checkpoint / WEIGHTS, lambda tensors: tensors.update(scale_shift_table=tensors["scale_shift_table"].reshape(shape)))
    found = load(plugin(checkpoint), make_run(weights), Part.DENOISER).denoiser
    expected = SanaVideoTransformer3DModel.from_pretrained(twin / "transformer", torch_dtype=dtype)
    assert {parameter.dtype for parameter in found.parameters()} == {dtype}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.buffers(), expected.buffers(), strict=True))
    assert not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("table", [(2, 32), (1, 2, 32)])
def test_any_other_tensor_of_another_shape_is_refused(checkpoint: Path, make_run: Callable[..., Run], table: tuple[int, ...]) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["scale_shift_table"] = tensors["scale_shift_table"].reshape(table)
        tensors["proj_out.bias"] = torch.zeros(8)

    rewrite(checkpoint / WEIGHTS, change)
    with pytest.raises(InputError, match=r"proj_out\.bias in .* has the shape \(8,\); the transformer's configuration asks for \(16,\)"):
        load(plugin(checkpoint), make_run(), Part.DENOISER)


def test_fingerprints_follow_what_each_field_depends_on(checkpoint: Path, make_run: Callable[..., Run]) -> None:
    def fingerprints(latents: str = "mean", **settings: object) -> dict[str, str]:
        return {field.key: field.fingerprint for field in plugin(checkpoint, **settings).fields(make_run(latents=latents))}

    before = fingerprints()
    assert set(before) == {"latents", "prompt_embeds"}
    assert fingerprints(latents="sample") == {**before, "latents_std": before["latents"]}
    for settings in ({"complex_human_instruction": False}, {"motion_score": 30}, {"text_encoder_dtype": "bf16"}):
        changed = fingerprints(**settings)
        assert (changed["latents"] == before["latents"], changed["prompt_embeds"] == before["prompt_embeds"]) == (True, False)
    assert fingerprints(vae_dtype="bf16")["latents"] != before["latents"]


def test_fine_tuned_weights_go_back_into_a_pipeline(twin: Path, tmp_path: Path, make_run: Callable[..., Run]) -> None:
    denoiser = load(plugin(twin), make_run(), Part.DENOISER).denoiser
    with torch.no_grad():
        denoiser.proj_out.bias.add_(1)
    denoiser.save_pretrained(tmp_path / "transformer")
    transformer = SanaVideoTransformer3DModel.from_pretrained(tmp_path / "transformer")
    pipeline = SanaVideoPipeline.from_pretrained(twin, transformer=transformer)
    assert all(torch.equal(a, b) for a, b in zip(denoiser.parameters(), pipeline.transformer.parameters(), strict=True))

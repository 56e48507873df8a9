"""The file: pipelines load it and get the trainer's own function, and a run can start from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.adapting import assert_what_is_no_file_is_told
from tunesmith import InputError
from tunesmith_lora import Lora, LoraSettings
from tunesmith_sana import SanaModel

from .conftest import Trained, predict


def loaded_by_diffusers(twin: Path, folder: Path, trained: Trained) -> Tensor:
    """What a fresh pipeline with the file predicts."""
    pipeline = SanaPipeline.from_pretrained(twin)
    pipeline.load_lora_weights(folder)
    assert isinstance(trained.model, SanaModel)
    with torch.no_grad():
        return predict(SanaModel(trained.model.family, pipeline.transformer, {}))


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 4, "alpha": 8},
        {"rank": 4},
        {"rank": 4, "alpha": 2, "rank_stabilized": True},
        {"rank": 2, "alpha": 4, "targets": ["proj_out", r".*\.[02]\.attn1\.to_q", r".*ff\.conv_point"]},
    ],
    ids=["alpha is twice the rank", "alpha is the rank", "rank stabilized", "patterns"],
)
def test_a_fresh_pipeline_with_the_file_predicts_what_the_trainer_predicts(
    twin: Path, tmp_path: Path, make: Callable[..., Trained], base_prediction: Tensor, settings: dict[str, Any]
) -> None:
    trained = make(**settings)
    trained.disturb()
    trained.save(tmp_path)
    ours = trained.predict()
    assert (ours - base_prediction).abs().max() > 0.01
    torch.testing.assert_close(loaded_by_diffusers(twin, tmp_path, trained), ours, rtol=0, atol=1e-6)


def test_without_its_metadata_the_same_file_would_be_another_function(twin: Path, tmp_path: Path, make: Callable[..., Trained]) -> None:
    trained = make(rank=4, alpha=8)
    trained.disturb()
    file = trained.save(tmp_path)
    save_file(load_file(file), file, metadata={"format": "pt"})
    assert (loaded_by_diffusers(twin, tmp_path, trained) - trained.predict()).abs().max() > 0.01


@pytest.mark.parametrize(("stabilized", "scale"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
def test_the_update_is_scaled_by_alpha_over_the_rank_or_its_root(make: Callable[..., Trained], stabilized: bool, scale: float) -> None:
    trained = make(rank=4, alpha=8, rank_stabilized=stabilized, targets=["proj_out"])
    trained.disturb()
    layer, x = trained.model.denoiser.proj_out, torch.randn(3, 32)
    down, up = (trained.adapter[f"proj_out.lora_{side}.default.weight"] for side in "AB")
    torch.testing.assert_close(layer(x), layer.base_layer(x) + scale * x @ down.T @ up.T)


def test_the_file_is_laid_out_as_diffusers_lays_it_out(tmp_path: Path, make: Callable[..., Trained]) -> None:
    file = make(rank=4, alpha=8).save(tmp_path)
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert tensors["transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"].shape == (4, 32)
    with safe_open(file, framework="pt") as opened:
        config = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (4, 8)
    assert config["transformer.target_modules"] == ["to_k", "to_out.0", "to_q", "to_v"]


def test_only_the_main_process_writes(tmp_path: Path, make: Callable[..., Trained]) -> None:
    make(rank=4, is_main=False).save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "."], ids=["file", "folder"])
def test_a_run_that_starts_from_a_file_starts_with_its_function(tmp_path: Path, make: Callable[..., Trained], name: str) -> None:
    trained = make(rank=4, alpha=8)
    trained.disturb()
    trained.save(tmp_path)
    started = make(rank=4, init_from=tmp_path / name)  # alpha comes from the file
    assert torch.equal(started.predict(), trained.predict())
    assert set(started.adapter) == set(trained.adapter)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rank": 8}, r"has rank 4, but `rank` is 8: set `rank = 4`"),
        ({"rank": 4, "alpha": 3}, r"trained with alpha 8\.0, not 3\.0: set `alpha = 8\.0`"),
        ({"rank": 4, "rank_stabilized": True}, r"set `rank_stabilized = false`"),
        ({"rank": 4, "targets": ["to_q", "proj_out"]}, r"has nothing for proj_out\.lora_A\.weight and 1 more"),
        (
            {"rank": 4, "targets": ["to_q"]},
            r"has weights beyond `targets` for transformer_blocks\.0\.attn1\.to_k\.lora_A\.weight and \d+ more",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_told(tmp_path: Path, make: Callable[..., Trained], settings: dict[str, Any], complaint: str) -> None:
    file = make(rank=4, alpha=8).save(tmp_path)
    with pytest.raises(InputError, match=complaint):
        make(init_from=file, **settings)


def test_a_file_that_cannot_be_started_from_is_a_problem_of_the_config(tmp_path: Path, make: Callable[..., Trained]) -> None:
    trained = make(rank=4, alpha=8)
    file, config = trained.save(tmp_path), trained.run.config
    assert list(Lora("lora", LoraSettings(rank=4, init_from=file)).check(config, trained.run.family)) == []
    for settings in (LoraSettings(rank=8, init_from=file), LoraSettings(rank=4, init_from=tmp_path / "none")):
        ((key, sentence),) = Lora("lora", settings).check(config, trained.run.family)
        assert key == ("plugins", "lora", "init_from")
        assert "`rank = 4`" in sentence or "no such file" in sentence


def test_targets_that_the_model_lacks_are_a_problem_of_the_config(make: Callable[..., Trained]) -> None:
    run = make(rank=4).run
    ((key, sentence),) = Lora("lora", LoraSettings(rank=4, targets=("to_z",))).check(run.config, run.family)
    assert key == ("plugins", "lora", "targets")
    assert "'to_z' matches no Linear" in sentence


def test_a_file_from_a_model_of_another_size_is_told(tmp_path: Path, make: Callable[..., Trained]) -> None:
    file = make(rank=4, targets=["proj_out"]).save(tmp_path)
    tensors = {name: tensor[:, :16].contiguous() if "lora_A" in name else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"has another shape for proj_out\.lora_A\.weight"):
        make(rank=4, targets=["proj_out"], init_from=file)


def test_what_is_no_lora_file_is_told(twin: Path, tmp_path: Path, make: Callable[..., Trained]) -> None:
    assert_what_is_no_file_is_told(make, twin, tmp_path, r"no keys such as transformer\.<layer>\.lora_A\.weight")

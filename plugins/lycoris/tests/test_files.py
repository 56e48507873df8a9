"""The files: LyCORIS, diffusers and a new run get the trainer's own function from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.adapting import assert_what_is_no_file_is_told
from tunesmith import InputError
from tunesmith_lycoris import Lycoris, LycorisSettings
from tunesmith_sana import SanaModel

from .conftest import Trained, predict

POINTWISE = r".*ff\.conv_(inverted|point)"
READABLE: list[dict[str, Any]] = [
    {"algo": "lokr", "rank": 1},
    {"algo": "lokr", "rank": 3, "alpha": 7, "factor": 4},
    {"algo": "lokr", "rank": 1, "alpha": 2, "factor": 8, "decompose_both": True},
    {"algo": "lokr", "full_matrix": True, "factor": 4},
    {"algo": "lokr", "rank": 2, "alpha": 3, "factor": 2, "targets": ["to_q", "patch_embed.proj", POINTWISE, "time_embed.linear"]},
    {"algo": "lokr", "rank": 1, "alpha": 3, "overrides": {"to_k": {"rank": 2}, "proj_out": {"full_matrix": True}}},
    {"algo": "locon", "rank": 4, "alpha": 8},
    {"algo": "locon", "rank": 2, "alpha": 3, "targets": ["to_q", "proj_out", POINTWISE], "overrides": {"attn2.to_q": {"rank": 5}}},
    {"algo": "locon", "rank": 3, "alpha": 5, "dora_wd": True, "targets": ["to_q", "to_out.0", POINTWISE]},
]
UNREADABLE: list[tuple[dict[str, Any], str]] = [
    ({"algo": "loha", "rank": 3, "alpha": 6}, r"reads no LoHa"),
    ({"algo": "ia3"}, r"reads no \(IA\)\^3"),
    ({"algo": "full", "targets": ["to_v", "proj_out"]}, r"reads no whole differences"),
    ({"algo": "lokr", "rank": 1, "dora_wd": True}, r"knows no DoRA of LoKr"),
    ({"algo": "lokr", "rank": 1, "unbalanced_factorization": True}, r"knows no unbalanced factors"),
    ({"algo": "lokr", "rank": 1, "overrides": {"to_k": {"factor": 2}}}, r"one `factor` and one `decompose_both`"),
    ({"algo": "lokr", "rank": 1, "overrides": {"to_k": {"algo": "locon"}}}, r"either LoKr or LoRA"),
    ({"algo": "locon", "rank": 2, "dora_wd": True, "wd_on_output": False}, r"lengths of rows"),
    ({"algo": "locon", "rank": 2, "targets": ["conv_depth"]}, r"conv_depth, a convolution of 160 groups"),
]


def named(settings: Any) -> str:
    return "-".join(map(str, settings.values())) if isinstance(settings, dict) else ""


def prediction_of(trained: Trained, transformer: Any) -> Tensor:
    assert isinstance(trained.model, SanaModel)
    with torch.no_grad():
        return predict(SanaModel(trained.model.family, transformer, {}))


@pytest.mark.parametrize("settings", READABLE, ids=named)
def test_a_fresh_diffusers_model_with_the_file_predicts_what_the_trainer_predicts(
    twin: Path, tmp_path: Path, make: Callable[..., Trained], base_prediction: Tensor, settings: dict[str, Any]
) -> None:
    trained = make(**settings)
    trained.disturb()
    trained.save(tmp_path)
    transformer = SanaTransformer2DModel.from_pretrained(twin / "transformer")
    transformer.load_lora_adapter(tmp_path / "diffusers", use_safetensors=True)
    assert (trained.predict() - base_prediction).abs().max() > 0.01
    torch.testing.assert_close(prediction_of(trained, transformer), trained.predict(), rtol=0, atol=1e-5)
    assert list(Lycoris("lycoris", trained.plugin.settings).check(trained.run.config, trained.run.family)) == []


def test_a_pipeline_loads_locon_as_lora(twin: Path, tmp_path: Path, make: Callable[..., Trained]) -> None:
    trained = make(algo="locon", rank=4, alpha=8)
    trained.disturb()
    trained.save(tmp_path)
    pipeline = SanaPipeline.from_pretrained(twin)
    pipeline.load_lora_weights(tmp_path / "diffusers")
    torch.testing.assert_close(prediction_of(trained, pipeline.transformer), trained.predict(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("settings", "reason"), UNREADABLE, ids=named)
def test_what_diffusers_cannot_read_is_told_and_not_written_for_it(
    tmp_path: Path, make: Callable[..., Trained], settings: dict[str, Any], reason: str
) -> None:
    trained = make(**settings)
    trained.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lycoris_config.json", "pytorch_lora_weights.safetensors"]
    remarks = " ".join(trained.plugin.remarks(trained.run.config, trained.run.family))
    assert re.search(f"load_lora_adapter cannot read what is trained: its? .*{reason}", remarks)


@contextmanager
def presets_of_its_own() -> Iterator[None]:
    """Put back what `apply_preset` of LyCORIS changes for the whole process."""
    names = [name for name in vars(LycorisNetwork) if name.isupper()]
    before = {name: getattr(LycorisNetwork, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(LycorisNetwork, name, value)


@pytest.mark.parametrize("settings", [*READABLE, *(settings for settings, _ in UNREADABLE)], ids=named)
def test_lycoris_itself_makes_the_same_adapters_of_the_config_and_the_same_function_of_the_file(
    twin: Path, tmp_path: Path, make: Callable[..., Trained], settings: dict[str, Any]
) -> None:
    trained = make(**settings)
    trained.disturb()
    file = trained.save(tmp_path)
    config = json.loads((tmp_path / "lycoris_config.json").read_text())
    transformer = SanaTransformer2DModel.from_pretrained(twin / "transformer")
    with presets_of_its_own():
        LycorisNetwork.apply_preset(config.pop("apply_preset"))
        network = create_lycoris(transformer, config.pop("multiplier"), config.pop("linear_dim"), config.pop("linear_alpha"), **config)
    if settings["algo"] != "full":  # LyCORIS takes a difference for one from its copies
        network.apply_to()
        assert network.state_dict().keys() == load_file(file).keys()
        assert not any(network.load_weights(str(file)).values())
        torch.testing.assert_close(prediction_of(trained, transformer), trained.predict(), rtol=0, atol=2e-5)
    else:
        assert {one.lora_name for one in network.loras} == {name.partition(".")[0] for name in load_file(file)}


@pytest.mark.parametrize("settings", [READABLE[1], READABLE[4], UNREADABLE[0][0], UNREADABLE[2][0]], ids=named)
def test_lycoris_reads_the_file_without_the_config(
    twin: Path, tmp_path: Path, make: Callable[..., Trained], settings: dict[str, Any]
) -> None:
    trained = make(**settings)
    trained.disturb()
    file = trained.save(tmp_path)
    transformer = SanaTransformer2DModel.from_pretrained(twin / "transformer")
    network, _ = create_lycoris_from_weights(1.0, str(file), transformer)
    network.apply_to()
    torch.testing.assert_close(prediction_of(trained, transformer), trained.predict(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("settings", [*READABLE, *(settings for settings, _ in UNREADABLE)], ids=named)
@pytest.mark.parametrize("by", ["settings", "config"])
def test_a_run_that_starts_from_a_file_starts_with_its_function(
    tmp_path: Path, make: Callable[..., Trained], settings: dict[str, Any], by: str
) -> None:
    trained = make(**settings)
    trained.disturb()
    file = trained.save(tmp_path)
    started = make(**settings, init_from=tmp_path) if by == "settings" else make(config=tmp_path / "lycoris_config.json", init_from=file)
    assert torch.equal(started.predict(), trained.predict())
    assert {name: value.shape for name, value in started.adapter.items()} == {name: value.shape for name, value in trained.adapter.items()}
    again = started.save(tmp_path / "again").parent
    assert (again / "lycoris_config.json").read_text() == (tmp_path / "lycoris_config.json").read_text()
    first, second = load_file(file), load_file(again / file.name)
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_the_file_is_laid_out_as_other_trainers_lay_it_out(tmp_path: Path, make: Callable[..., Trained]) -> None:
    file = make(rank=1, targets=["attn1.to_out.0"], factor=4).save(tmp_path)
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    key = "lycoris_transformer_blocks_0_attn1_to_out_0"
    assert {name: list(value.shape) for name, value in tensors.items() if name.startswith(key)} == {
        f"{key}.alpha": [],
        f"{key}.lokr_w1": [4, 4],
        f"{key}.lokr_w2_a": [8, 1],
        f"{key}.lokr_w2_b": [1, 8],
    }
    with safe_open(file, framework="pt") as opened:
        config = json.loads(opened.metadata()["lycoris_config"])
    assert config == json.loads((tmp_path / "lycoris_config.json").read_text())
    assert config == {
        "algo": "lokr",
        "multiplier": 1.0,
        "linear_dim": 1,
        "linear_alpha": 1.0,
        "factor": 4,
        "apply_preset": {"target_module": [], "target_name": [r"(?:.*\.)?attn1\.to_out\.0$"]},
    }


def test_only_the_main_process_writes(tmp_path: Path, make: Callable[..., Trained]) -> None:
    make(is_main=False).save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rank": 2}, r"lokr_w2_a of transformer_blocks\.0\.attn1\.to_q is \[8, 1\] there and \[8, 2\] here; take the `rank`"),
        ({"rank": 1, "alpha": 3}, r"transformer_blocks\.0\.attn1\.to_q was trained with alpha 2, and not 3"),
        ({"rank": 1, "alpha": 2, "targets": ["to_q", "proj_out"]}, r"has nothing for lycoris_proj_out\.alpha and 3 more"),
        ({"rank": 1, "alpha": 2, "targets": ["attn1.to_q"]}, r"has weights beyond `targets` for lycoris_transformer_blocks_0_attn2_to_q"),
        ({"rank": 1, "algo": "locon"}, r"has nothing for .*lora_down\.weight and \d+ more: .*lycoris_config\.json"),
    ],
)
def test_a_file_that_does_not_fit_is_told(tmp_path: Path, make: Callable[..., Trained], settings: dict[str, Any], complaint: str) -> None:
    common = {"factor": 4} if "algo" not in settings else {}
    file = make(rank=1, alpha=2, targets=["to_q"], factor=4).save(tmp_path)
    with pytest.raises(InputError, match=complaint):
        make(init_from=file, **{"targets": ["to_q"], **common, **settings})


def test_a_start_that_does_not_fit_is_a_problem_of_the_config(tmp_path: Path, make: Callable[..., Trained]) -> None:
    trained = make(targets=["to_q"])
    file, run = trained.save(tmp_path), trained.run

    def problems(**settings: Any) -> list[Any]:
        return list(Lycoris("lycoris", LycorisSettings(**settings)).check(run.config, run.family))

    assert problems(targets=("to_q",), init_from=file) == []
    for settings in ({"init_from": file}, {"targets": ("to_q",), "init_from": tmp_path / "none"}):
        [(key, sentence)] = problems(**settings)
        assert key == ("plugins", "lycoris", "init_from")
        assert "has nothing for" in sentence or "no such file" in sentence


def test_what_is_no_file_of_lycoris_is_told(twin: Path, tmp_path: Path, make: Callable[..., Trained]) -> None:
    assert_what_is_no_file_is_told(make, twin, tmp_path, r"no keys such as lycoris_<layer>\.lokr_w1")


def test_weights_of_half_precision_are_taken_up(tmp_path: Path, make: Callable[..., Trained]) -> None:
    file = make(targets=["to_q"]).save(tmp_path)
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    assert {value.dtype for value in make(targets=["to_q"], init_from=file).adapter.values()} == {torch.float32}

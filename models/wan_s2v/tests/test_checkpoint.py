"""Names, shapes and precision of the published checkpoint, files on disk, and what diffusers and peft do with the network."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith import InputError
from tunesmith_wan_s2v import WanS2VTransformer3DModel, register

from .goldens import GOLDEN, difference, facts, group, inputs, network, prediction

ENCODER = "condition_embedder.causal_audio_encoder"
OTHER_NAMES = {
    f"{ENCODER}.weights": f"{ENCODER}.weighted_avg.weights",
    f"{ENCODER}.encoder.conv2.conv.weight": f"{ENCODER}.encoder.conv2.conv.conv.weight",
    f"{ENCODER}.encoder.conv2.conv.bias": f"{ENCODER}.encoder.conv2.conv.conv.bias",
    f"{ENCODER}.encoder.conv3.conv.weight": f"{ENCODER}.encoder.conv3.conv.conv.weight",
    f"{ENCODER}.encoder.conv3.conv.bias": f"{ENCODER}.encoder.conv3.conv.conv.bias",
}
CASE = inputs("a", "motion_pose")
FP32 = {"time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "causal_audio_encoder"}


def test_the_published_checkpoint_fits_by_name_and_shape() -> None:
    with torch.device("meta"):
        model = WanS2VTransformer3DModel()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == json.loads((GOLDEN / "wan_s2v_14b_manifest.json").read_text())
    assert len(shapes) == 1260
    assert sum(value.numel() for value in model.parameters()) == 16_295_755_609


def save(model: WanS2VTransformer3DModel, folder: Path, shards: bool = False) -> Path:
    model.save_pretrained(folder, max_shard_size="100KB" if shards else "1GB")
    assert (len(list(folder.glob("*.safetensors"))) > 3) == shards
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of every file of a saved network, and the index with them."""
    weight_map = {}
    for file in sorted(folder.glob("*.safetensors")):
        held = load_file(file)
        change(held)
        save_file(held, file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(held, file.name))
    for index in folder.glob("*.index.json"):
        index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def rename(held: dict[str, Tensor]) -> None:
    for name, other in OTHER_NAMES.items():
        if name in held:
            held[other] = held.pop(name)


def file_names(folder: Path) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("naming", ["published", "other"])
def test_a_saved_network_loads_in_both_namings(naming: str, shards: bool, tmp_path: Path) -> None:
    model = network("a")
    folder = save(model, tmp_path, shards)
    assert file_names(folder) == set(model.state_dict())
    if naming == "other":
        rewrite(folder, rename)
        assert set(OTHER_NAMES.values()) <= file_names(folder)
    loaded = WanS2VTransformer3DModel.from_pretrained(folder)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert difference(prediction(loaded, CASE), prediction(model, CASE)) < 1e-5
    assert file_names(save(loaded, tmp_path / "again")) == set(model.state_dict())


def test_plain_state_dicts_load_in_both_namings_even_below_another_module() -> None:
    state = group("a", "sd")
    rename(state)
    model = WanS2VTransformer3DModel(**facts("a")["config"])
    torch.nn.ModuleDict({"denoiser": model}).load_state_dict({f"denoiser.{name}": value for name, value in state.items()})
    assert all(torch.equal(value, group("a", "sd")[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_missing_and_unknown_tensors_are_named(shards: bool, tmp_path: Path) -> None:
    folder = save(network("a"), tmp_path, shards)

    def spoil(held: dict[str, Tensor]) -> None:
        if held.pop("blocks.1.attn2.norm_q.weight", None) is not None:
            held["blocks.1.attn2.norm_q.extra"] = torch.zeros(1)

    rewrite(folder, spoil)
    with pytest.raises(InputError) as raised:
        WanS2VTransformer3DModel.from_pretrained(folder)
    message = str(raised.value)
    assert "lacks 1 tensor (blocks.1.attn2.norm_q.weight)" in message
    assert "has 1 tensor (blocks.1.attn2.norm_q.extra)" in message
    assert str(folder) in message


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("naming", ["published", "other"])
def test_tensors_of_another_shape_are_named_with_what_was_found_and_wanted(naming: str, shards: bool, tmp_path: Path) -> None:
    folder = save(network("a"), tmp_path, shards)
    wide = f"{ENCODER}.weights"

    def spoil(held: dict[str, Tensor]) -> None:
        for name in {"blocks.1.attn2.norm_q.weight", wide} & held.keys():
            held[name] = held[name].repeat_interleave(2, dim=-1)
        if naming == "other":
            rename(held)

    rewrite(folder, spoil)
    with pytest.raises(InputError) as raised:
        WanS2VTransformer3DModel.from_pretrained(folder)
    message = str(raised.value)
    shapes = {name: list(group("a", "sd")[name].shape) for name in ("blocks.1.attn2.norm_q.weight", wide)}
    assert "has 2 tensors (" in message
    for name, shape in shapes.items():
        assert f"{name}: {[*shape[:-1], 2 * shape[-1]]} instead of {shape}" in message
    assert "lacks" not in message


def test_a_shard_that_is_cut_short_is_named(tmp_path: Path) -> None:
    folder = save(network("a"), tmp_path, shards=True)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{shard.name} cannot be read: .*copy or download it anew"):
        WanS2VTransformer3DModel.from_pretrained(folder)


def test_the_number_of_layers_heard_may_be_absent_from_the_configuration(tmp_path: Path) -> None:
    model = network("b")  # 25 layers, as the published checkpoint has
    config = json.loads((save(model, tmp_path) / "config.json").read_text())
    del config["num_weighted_avg_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert difference(prediction(WanS2VTransformer3DModel.from_pretrained(tmp_path), inputs("b", "motion")), golden_of_b()) < 1e-4


def golden_of_b() -> Tensor:
    return group("b", "motion.out")["sample"]


def test_low_precision_keeps_what_must_stay_exact(tmp_path: Path) -> None:
    exact = network("a")
    model = WanS2VTransformer3DModel.from_pretrained(save(exact, tmp_path), torch_dtype=torch.bfloat16)
    kept = {name for name, value in model.named_parameters() if value.dtype == torch.float32}
    assert kept == {name for name, _ in model.named_parameters() if FP32 & set(name.split("."))}
    assert {value.dtype for name, value in model.named_parameters() if name not in kept} == {torch.bfloat16}
    coarse = {key: value.bfloat16() if isinstance(value, Tensor) and key != "timestep" else value for key, value in CASE.items()}
    low, high = prediction(model, coarse), prediction(exact, CASE)
    assert low.dtype == torch.bfloat16
    assert float((low.float() - high).norm() / high.norm()) < 0.03


def test_autocast_is_near_full_precision_and_trains() -> None:
    model = network("a")
    with torch.autocast("cpu", torch.bfloat16):
        sample = model(**CASE).sample
    exact = prediction(model, CASE)
    assert float((sample.detach().float() - exact).norm() / exact.norm()) < 0.03
    sample.float().square().mean().backward()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in model.parameters())


def test_time_and_sound_are_exact_under_autocast_and_tokens_are_not() -> None:
    model = network("a")
    seen: list[tuple[Tensor, ...]] = []
    entered: list[torch.dtype] = []
    model.blocks[0].register_forward_pre_hook(lambda module, given: entered.append(given[0].dtype))
    model.condition_embedder.register_forward_hook(lambda module, given, out: seen.append(out))
    prediction(model, CASE)
    with torch.autocast("cpu", torch.bfloat16):
        prediction(model, CASE)
    assert entered == [torch.float32, torch.bfloat16]
    (temb, modulation, _, _, local, summary), (same, same_modulation, _, _, low_local, low_summary) = seen
    assert torch.equal(temb, same)
    assert torch.equal(modulation, same_modulation)
    assert torch.equal(local.bfloat16(), low_local)
    assert torch.equal(summary.bfloat16(), low_summary)


def test_diffusers_resolves_the_class(tmp_path: Path) -> None:
    class Holder(DiffusionPipeline):  # type: ignore[misc]
        def __init__(self, transformer: Any) -> None:
            super().__init__()
            self.register_modules(transformer=transformer)

    register()
    assert diffusers.WanS2VTransformer3DModel is WanS2VTransformer3DModel
    model = network("a")
    Holder(model).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "transformer": ["diffusers", "WanS2VTransformer3DModel"]}))
    loaded = Holder.from_pretrained(tmp_path).transformer
    assert type(loaded) is WanS2VTransformer3DModel
    assert difference(prediction(loaded, CASE), prediction(model, CASE)) < 1e-5


def test_a_lora_reaches_blocks_and_injections_and_comes_back_from_its_file(tmp_path: Path) -> None:
    model = network("a")
    before = prediction(model, CASE)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    torch.manual_seed(0)
    model.add_adapter(config)
    adapted = prediction(model, CASE)
    names = get_peft_model_state_dict(model)
    assert len(names) == 2 * 4 * (2 * 4 + 2)  # two matrices, four projections, two attentions a block and one an injection
    assert difference(adapted, before) > 1e-3
    model.save_lora_adapter(tmp_path)
    other = network("a")
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert difference(prediction(other, CASE), adapted) < 1e-6


def test_a_network_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(network("a")))
    assert difference(prediction(again, CASE), prediction(network("a"), CASE)) < 1e-5

"""Training an adapter with frozen weights that are gone when they are not needed: the run without offload is beside it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.runs.conftest import Result
from tunesmith.config import ConfigErrors

from .conftest import SAMPLES, Runner
from .pretended import Device

LORA = "[plugins.lora]\nrank = 2\n"


def adapter(result: Result) -> dict[str, Tensor]:
    return load_file(result.path / "final/pytorch_lora_weights.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


@pytest.mark.parametrize(("settings", "loads"), [("", 7), ("blocks_per_group = 3", 3)])
def test_a_run_with_blocks_that_come_and_go_is_the_run_without(
    train: Runner, plain: Runner, forgetful: Device, settings: str, loads: int
) -> None:
    """Of n groups each comes once in forward, and all but the last, which stays, once more in backward: 2n - 1 a step."""
    offloaded = train(f"{LORA}[plugins.group_offload]\n{settings}")
    assert same(adapter(plain(LORA)), adapter(offloaded))
    assert forgetful.schedule.most_here == 1
    assert forgetful.loads == 3 * loads
    assert not any(group.is_here for group in forgetful.schedule.groups)


def test_layers_that_come_and_go_give_the_same_run_and_the_same_samples(train: Runner, plain: Runner, forgetful: Device) -> None:
    expected, found = plain(LORA, SAMPLES), train(f"{LORA}[plugins.group_offload]\nlevel = 'leaf'", SAMPLES)
    assert same(adapter(expected), adapter(found))
    assert expected.pictures(3) == found.pictures(3)
    assert len(found.pictures(3)) == 1


def test_a_layer_that_holds_its_adapter_comes_and_goes_too(train: Runner, plain: Runner, forgetful: Device) -> None:
    """LyCORIS' adapters are parts of their layers, which are all linear layers of attention here."""
    lycoris = "[plugins.lycoris]\nrank = 2\n"
    offloaded = train(f"{lycoris}[plugins.group_offload]\nlevel = 'leaf'")
    assert same(adapter(plain(lycoris)), adapter(offloaded))
    away = {id(tensor) for group in forgetful.schedule.groups for tensor in group.tensors}
    layers = [layer for stretch in forgetful.schedule.stretches for layer in stretch.within.modules() if isinstance(layer, nn.Linear)]
    assert layers
    assert all(id(layer.weight) in away for layer in layers if not layer.weight.requires_grad)


def test_weights_in_files_give_the_same_run_and_leave_no_file(train: Runner, plain: Runner, tmp_path: Path) -> None:
    networks = "encoders = ['vae', 'text_encoder']"
    offloaded = train(f"{LORA}[plugins.group_offload]\n{networks}\nto_disk = {str(tmp_path)!r}", SAMPLES, "run.cache='memory'")
    assert same(adapter(plain(LORA)), adapter(offloaded))
    assert plain(LORA, SAMPLES).pictures(3) == offloaded.pictures(3)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "override", "told"),
    [
        (LORA, "run.gradient_checkpointing=false", r"set \[run\] gradient_checkpointing = true"),
        (LORA, "plugins.group_offload.blocks_per_group=4", "all of the 4 blocks could be on the device at a time; .* use at most 3"),
        ("", "plugins.group_offload.to_disk='away'", "to_disk: files are written once, and without an adapter the weights in them"),
        ("", "run.precision='fp16'", 'precision = "fp16": the scale of gradients'),
        ("", "optimizer={fused_backward_pass=true,clip_value=1.0}", "fused_backward_pass updates the copy of a weight"),
        (LORA, "run.compile='blocks' plugins.group_offload.level='leaf'", 'level = "leaf" brings weights between one layer and the next'),
        (LORA, "plugins.group_offload.encoders=['vea']", "sana has no 'vea'; did you mean 'vae'"),
        (LORA, "plugins.group_offload.encoders=['']", "encoders: sana has no ''; it has vae, text_encoder"),
        (LORA, "plugins.group_offload.encoders=['vae','vae']", "encoders = .*: has 'vae' twice; name it once"),
        (LORA, "plugins.group_offload.to_disk=''", "to_disk = '': names nothing; write a path, or take this out"),
    ],
)
def test_what_cannot_work_or_saves_nothing_is_refused(train: Runner, settings: str, override: str, told: str) -> None:
    with pytest.raises(ConfigErrors, match=told):
        train(f"{settings}[plugins.group_offload]\n", *override.split(" "))

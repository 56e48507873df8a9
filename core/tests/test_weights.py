"""Weights that are damaged or another network's are told in one line, whichever library would have loaded them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load, save
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from tunesmith import InputError, Origin, fetch_weights, load_frozen

KINDS = (AutoencoderKL, T5EncoderModel)


@pytest.fixture(params=KINDS, ids=["diffusers", "transformers"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A class of each library, and a folder with a network of it in its part `net`."""
    network = (
        AutoencoderKL()
        if request.param is AutoencoderKL
        else T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=4, d_ff=8, num_layers=1))
    )
    network.save_pretrained(tmp_path / "net")
    return request.param, tmp_path


def loaded(saved: tuple[Any, Path], **options: Any) -> Any:
    kind, folder = saved
    return load_frozen(kind, fetch_weights(Origin(str(folder)), "net", None), torch.float32, **options)


def weights(saved: tuple[Any, Path]) -> Path:
    [file] = (saved[1] / "net").glob("*.safetensors")
    return file


def test_sound_weights_are_loaded_frozen_and_as_they_are(saved: tuple[Any, Path]) -> None:
    network = loaded(saved)
    stored = load(weights(saved).read_bytes())
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in stored.items())
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize(
    "content", [lambda whole: whole[:-50], lambda whole: b"", lambda whole: b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_damaged_files_are_named(saved: tuple[Any, Path], content: Any) -> None:
    file = weights(saved)
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(InputError) as raised:
        loaded(saved)
    assert str(raised.value).startswith(f"{file} cannot be read: ")
    assert str(raised.value).endswith("copy or download it anew")


def test_files_that_cannot_be_opened_are_named(saved: tuple[Any, Path]) -> None:
    kind, folder = saved
    component = fetch_weights(Origin(str(folder)), "net", None)
    weights(saved).unlink()
    with pytest.raises(InputError, match=r"safetensors cannot be read: .*No such file"):
        load_frozen(kind, component, torch.float32)


def test_tensors_of_another_shape_are_named_with_both_shapes(saved: tuple[Any, Path]) -> None:
    file = weights(saved)
    tensors: dict[str, Tensor] = load(file.read_bytes())
    name = min(name for name, value in tensors.items() if value.ndim == 1 and len(value) > 1)
    length = len(tensors[name])
    file.write_bytes(save({**tensors, name: tensors[name][:-1].clone()}, {"format": "pt"}))
    with pytest.raises(InputError) as raised:
        loaded(saved)
    message = str(raised.value)
    assert message.startswith(f"the weights in {saved[1] / 'net'} do not belong to its config.json: {name} ")
    assert f"[{length - 1}]" in message
    assert f"[{length}]" in message
    assert "\n" not in message


def test_a_mistake_in_the_call_is_no_fault_of_the_weights(tmp_path: Path) -> None:
    AutoencoderKL().save_pretrained(tmp_path / "net")
    config = tmp_path / "net" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "act_fn": "nonsense"}))
    with pytest.raises(ValueError, match="nonsense"):
        loaded((AutoencoderKL, tmp_path))

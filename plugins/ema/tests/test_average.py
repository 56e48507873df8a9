"""The average against the recurrence in float64, over the weights that every checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tunesmith_ema import Ema, EmaSettings
from tunesmith_ema.average import Average
from tunesmith_ema.plugin import decay_at

from .conftest import Runner

TRAINED, AVERAGED = "transformer/diffusion_pytorch_model.safetensors", "ema/transformer/diffusion_pytorch_model.safetensors"
LORA = "[plugins.lora]\nrank = 2\n"


def step(folder: Path, number: int) -> Path:
    return folder / f"checkpoints/step-{number:06d}"


def expected(weights: list[dict[str, Tensor]], decays: list[float]) -> dict[str, Tensor]:
    """average = decay * average + (1 - decay) * weights, in float64, beginning with the first weights."""
    average = {name: value.double() for name, value in weights[0].items()}
    for now, decay in zip(weights[1:], decays, strict=True):
        average = {name: decay * value + (1 - decay) * now[name].double() for name, value in average.items()}
    return average


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        ("decay = 0.9", [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16]),
        ("decay = 0.3", [2 / 11, 3 / 12, 0.3, 0.3, 0.3, 0.3]),
        ("decay = 0.9\nwarmup = false", [0.9] * 6),
        ("decay = 0.9\nwarmup = false\nevery = 2", [1.0, 0.81, 1.0, 0.81, 1.0, 0.81]),
    ],
)
def test_the_average_is_that_of_the_recurrence(train: Runner, twin: Path, settings: str, decays: list[float]) -> None:
    folder = train("averaged", f"[plugins.ema]\n{settings}")
    weights = [load_file(twin / TRAINED), *(load_file(step(folder, number) / TRAINED) for number in range(1, 7))]
    for number in range(1, 7):
        found = load_file(step(folder, number) / AVERAGED)
        for name, value in expected(weights[: number + 1], decays[:number]).items():
            torch.testing.assert_close(found[name].double(), value, rtol=0, atol=1e-6)
    assert not torch.equal(found["patch_embed.proj.weight"], weights[-1]["patch_embed.proj.weight"])


def test_updates_that_are_rare_remember_as_long() -> None:
    often, rarely = EmaSettings(decay=0.99, warmup=False), EmaSettings(decay=0.99, warmup=False, every=50)
    assert decay_at(100, rarely) == pytest.approx(decay_at(100, often) ** 50)


@pytest.mark.parametrize(
    ("every", "told"), [(7, ["every = 7: no update is due within 6 steps, so the average stays what was loaded"]), (6, [])]
)
def test_an_average_that_will_never_be_updated_is_told(every: int, told: list[str]) -> None:
    config: Any = SimpleNamespace(run=SimpleNamespace(steps=6))
    *remarks, _ = Ema("ema", EmaSettings(every=every)).remarks(config, Mock())
    assert remarks == told


def test_the_average_of_weights_in_half_precision_sees_what_they_cannot() -> None:
    weight = torch.ones(3, dtype=torch.bfloat16)
    average = Average({"weight": weight}, Tensor.cpu)
    weight += 0.0078125  # the next number that bf16 has
    average.follow({"weight": weight}, 0.999)
    torch.testing.assert_close(average.values["weight"], torch.full((3,), 1 + 0.0078125 / 1000), rtol=0, atol=1e-7)


def test_weights_are_their_own_again_even_after_an_error() -> None:
    weight = torch.tensor([1.0, 2.0])
    average = Average({"weight": weight}, Tensor.cpu)
    weight += 1
    seen = []

    def fail() -> None:
        with average.in_place_of({"weight": weight}):
            seen.append(weight.tolist())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [[1, 2]]
    assert weight.tolist() == [2, 3]


def test_weights_are_their_own_again_even_if_one_has_no_room_for_its_average() -> None:
    weights = {"first": torch.zeros(2), "second": torch.zeros(2)}
    average = Average({"first": torch.ones(2), "second": torch.ones(3)}, Tensor.cpu)
    with pytest.raises(RuntimeError), average.in_place_of(weights):
        pytest.fail("the average cannot be in place")
    assert [weight.tolist() for weight in weights.values()] == [[0, 0], [0, 0]]


def test_a_resumed_run_has_the_same_average(train: Runner) -> None:
    table = "[plugins.ema]\ndecay = 0.9\n" + LORA
    whole = train("whole", table)
    train("parts", table, "run.steps=3")
    parts = train("parts", table)
    for name in ("pytorch_lora_weights.safetensors", "ema/pytorch_lora_weights.safetensors"):
        first, second = load_file(whole / "final" / name), load_file(parts / "final" / name)
        assert all(torch.equal(first[key], second[key]) for key in first | second)


def test_a_run_trains_the_same_weights_with_an_average_as_without(train: Runner) -> None:
    plain, averaged = train("plain", LORA), train("averaged", LORA + "[plugins.ema]\n")
    first, second = (load_file(one / "final/pytorch_lora_weights.safetensors") for one in (plain, averaged))
    assert all(torch.equal(first[key], second[key]) for key in first | second)


def test_what_is_saved_loads_as_the_weights_do(train: Runner, twin: Path) -> None:
    full, adapter = train("full", "[plugins.ema]\n"), train("adapter", "[plugins.ema]\n" + LORA)
    assert SanaTransformer2DModel.from_pretrained(full / "final/ema/transformer").config.num_layers == 4
    pipeline = SanaPipeline.from_pretrained(twin)
    pipeline.load_lora_weights(adapter / "final/ema")
    saved = load_file(adapter / "final/ema/pytorch_lora_weights.safetensors")
    loaded = dict(pipeline.transformer.named_parameters())
    key = "transformer_blocks.0.attn1.to_q.lora_B"
    assert torch.equal(loaded[f"{key}.default_0.weight"], saved[f"transformer.{key}.weight"])
    assert bool(saved[f"transformer.{key}.weight"].any())


def pictures_of(folder: Path) -> dict[str, tuple[bytes, object]]:
    found = {}
    for file in (folder / "validation/step-000006").glob("*.png"):
        with Image.open(file) as image:
            found[file.stem] = (image.tobytes(), json.loads(image.text["tunesmith"]).get("weights"))  # type: ignore[attr-defined]
    return found


def test_validation_looks_at_the_average_at_the_weights_or_at_both(train: Runner) -> None:
    plain = pictures_of(train("plain", ""))["grey-64x64-seed0"]
    settings = "[plugins.ema]\ndecay = 0.99\nwarmup = false\nvalidate_with = "
    average = pictures_of(train("average", settings + "'average'"))["grey-64x64-seed0"]
    assert pictures_of(train("weights", settings + "'weights'")) == {"grey-64x64-seed0": plain}
    assert average[0] != plain[0]
    assert average[1] == "ema"
    both = pictures_of(train("both", settings + "'both'"))
    assert both == {"grey-64x64-seed0": average, "grey-64x64-seed0-trained": plain}

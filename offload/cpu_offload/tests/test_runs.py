"""Whole runs with networks that are gone when they have nothing to do, and the runs without offload beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import av
import pytest
from diffusers import AutoencoderDC
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.matrix.stage import FAMILIES, Stage, build
from tests.runs.conftest import Result, start_run
from tunesmith import Modality, PipelinePlugin
from tunesmith.config import ConfigErrors, load_config
from tunesmith.engine import Engine
from tunesmith.session import assemble, remarks

from .pretended import Device, pretend_machine

OFFLOAD = "[plugins.cpu_offload]\n"
SAMPLES = """
[validation]
dataset_samples = 2
resolutions = ["64x64"]
steps = 1
at_start = false
"""
EACH_STEP = "validation.every=1"
CLIPS = "num_frames = 9\n[plugins.video]\n"
Train = Callable[..., Result]


@pytest.fixture(scope="module")
def stage_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stage]:
    folder = tmp_path_factory.mktemp("offloaded")
    return cache(lambda family: build(family, folder / family))


@pytest.fixture(scope="module")
def train(stage_of: Callable[[str], Stage], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Two steps of a family, with a cache of its own."""

    def start(family: str, extra: str, *overrides: str) -> Result:
        stage, folder = stage_of(family), tmp_path_factory.mktemp(family)
        tables = stage.config(SAMPLES + (CLIPS if stage.modality is Modality.VIDEO else "") + extra)
        own = (f"run.cache_dir={str(folder)!r}", f"run.output={str(folder)!r}", "run.steps=2", "run.batch_size=1", *overrides)
        return start_run(folder / "run.toml", tables, own)

    return start


@pytest.fixture(scope="module")
def plain(train: Train) -> Result:
    """The whole of a model of pictures is trained, and samples are made after each step."""
    return train("sana", "", EACH_STEP)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The pretended device in place of the real one."""
    pretended = pretend_machine(monkeypatch)
    backward = Engine.backward

    def noted(engine: Engine, loss: Tensor) -> None:
        assert not pretended.here
        pretended.note("step")
        backward(engine, loss)

    monkeypatch.setattr(Engine, "backward", noted)
    return pretended


def made_by(result: Result) -> dict[str, Any]:
    """Everything that a run has made, but not when: losses, weights, the optimizer's state and samples."""
    files = chain(result.path.glob("validation/**/*.*"), result.path.glob("final/**/*.safetensors"))
    made = {str(file.relative_to(result.path)): content(file) for file in files}
    return {"losses": result.losses, **{name: value.tolist() for name, value in result.weights(2).items()}, **made}


def content(file: Path) -> Any:
    """Pixels, frames with their sound, or weights; without the recipe, which names the plugins."""
    if file.suffix == ".png":
        return Image.open(file).tobytes()
    if file.suffix == ".mp4":
        with av.open(str(file)) as container:
            return [bytes(packet) for packet in container.demux()]
    return {name: value.tolist() for name, value in load_file(file).items()}


def assert_same(offloaded: Result, plain: Result) -> None:
    found, expected = made_by(offloaded), made_by(plain)
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if found[name] != value] == []
    assert sum(name.startswith("validation") for name in expected) >= 2


@dataclass(frozen=True)
class Plan:
    """A family's run, and who comes to the device while the cache is filled, and in validation."""

    tables: str
    filling: str
    validating: str


LORA = "[plugins.lora]\nrank = 2\n"
PLANS = {
    "sana": Plan("[plugins.ema]\nvalidate_with = 'both'\n", "text vae", "vae denoiser vae denoiser vae denoiser vae denoiser"),
    "sana_video": Plan(LORA + "[plugins.quantize]\nformat = 'int8-bnb'\n", "text vae", "vae denoiser vae denoiser"),
    "wan_s2v": Plan(LORA, "text vae audio vae audio vae audio vae audio", "audio vae denoiser vae audio vae denoiser vae denoiser"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_whose_networks_take_turns_is_the_run_without(train: Train, device: Device, family: str) -> None:
    plan = PLANS[family]
    without = train(family, plan.tables)
    assert device.log == ["step"]
    device.log.clear()
    assert_same(train(family, plan.tables + OFFLOAD), without)
    before, after = device.log[: device.log.index("step")], device.log[device.log.index("step") :]
    assert came(before) == plan.filling.split()
    assert came(after[2:-1]) == plan.validating.split()
    assert (after[:2], after[-1]) == (["step", "-state"], "+state")


def came(log: list[str]) -> list[str]:
    return [entry[1:] for entry in log if entry.startswith("+")]


def test_without_a_cache_encoders_are_away_while_the_model_computes(train: Train, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    load = PipelinePlugin.load_denoiser

    def noted(*given: Any) -> Any:
        device.note("load")
        return load(*given)

    monkeypatch.setattr(PipelinePlugin, "load_denoiser", noted)
    without = train("sana", "", "run.cache=false")
    device.log.clear()
    assert_same(train("sana", OFFLOAD, "run.cache=false"), without)
    assert came(device.log)[:3] == ["text", "vae", "text"]
    assert [device.log[number - 1] for number, entry in enumerate(device.log) if entry in ("load", "step")] == ["-text"] * 3


def test_of_what_is_not_asked_for_nothing_moves(train: Train, device: Device, plain: Result) -> None:
    settings = "encoders = false\ndenoiser = false\noptimizer = false\n"
    assert_same(train("sana", OFFLOAD + settings, EACH_STEP), plain)
    assert device.log == ["step", "-vae", "+vae", "-vae", "+vae"] * 2


def test_after_a_sample_that_fails_everything_is_as_before(
    train: Train, device: Device, plain: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = AutoencoderDC.decode, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return decode(*args, **kwargs)

    monkeypatch.setattr(AutoencoderDC, "decode", failing)
    offloaded = train("sana", OFFLOAD, EACH_STEP)
    [lacking] = [event["message"] for event in offloaded.events if event["event"] == "warning"]
    assert lacking == "samples-0-64x64-seed0 could not be made"
    found, expected = made_by(offloaded), made_by(plain)
    assert expected.keys() - found.keys() == {"validation/step-000001/samples-0-64x64-seed0.png"}
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        (
            "[plugins.group_offload]\n",
            "cannot be on together with",
        ),
        ("[validation]\nprompts = { a = 'a' }\nat_start = false\nat_end = false\n", "it would save nothing"),
        ("", "it would save nothing"),
    ],
)
def test_what_cannot_work_or_would_save_nothing_is_refused(stage_of: Any, tmp_path: Path, tables: str, told: str) -> None:
    file = tmp_path / "refused.toml"
    file.write_text(stage_of("sana").config(OFFLOAD + "encoders = false\n" + tables))
    with pytest.raises(ConfigErrors, match=told):
        assemble(load_config(file))


def test_it_is_told_what_moves(stage_of: Any, tmp_path: Path) -> None:
    file = tmp_path / "told.toml"
    file.write_text(stage_of("sana").config(SAMPLES + OFFLOAD))

    def told(*overrides: str) -> list[str]:
        config = load_config(file, overrides)
        return [line for line in remarks(config, assemble(config)) if line.startswith("cpu_offload")]

    assert told() == ["cpu_offload: the run computes on the CPU, where everything lies already: nothing moves"]
    without_cache, sampling = told("run.device='cuda'", "run.cache=false")
    assert "for every batch" in without_cache
    assert told("run.device='cuda'") == [sampling]
    assert "for every sample" in sampling

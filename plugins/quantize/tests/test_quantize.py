"""Runs on a quantised base: adapters learn, save, load and resume; what cannot work is refused before anything is loaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from safetensors.torch import load_file

from tests.families.conftest import Case, config_text
from tunesmith import FamilyPlugin, Model, Part
from tunesmith.config import ConfigErrors, load_config
from tunesmith.data.hashing import FileHashes
from tunesmith.discovery import load_class
from tunesmith.engine import Engine
from tunesmith.progress import Progress
from tunesmith.run import Run
from tunesmith.rundir import RunDirectory
from tunesmith.session import assemble
from tunesmith_quantize import Quantize, QuantizeSettings
from tunesmith_quantize.formats import Format
from tunesmith_quantize.layers import QuantizedLinear, QuantizedPointwise

from .conftest import Runner

LORA = "[plugins.lora]\nrank = 4\n"


def quantize(format: str | None = "nf4-bnb", **settings: Any) -> str:
    """The plugin's table; with an adapter."""
    given = {**({} if format is None else {"format": f'"{format}"'}), **settings}
    return LORA + "[plugins.quantize]\n" + "\n".join(f"{key} = {value}" for key, value in given.items()) + "\n"


@pytest.mark.parametrize(("format", "precision", "weights"), [("nf4-bnb", "bf16", "bf16"), ("int8-bnb", "no", "fp32")])
def test_the_loss_falls_as_it_does_without(train: Runner, format: str, precision: str, weights: str) -> None:
    settings = ("run.steps=16", f"run.precision={precision}", f"run.weights={weights}", "run.gradient_checkpointing=true")
    plain, packed = train("plain", LORA, *settings).losses, train("packed", quantize(format), *settings).losses
    assert sum(packed[-4:]) < 0.85 * sum(packed[:4])
    assert packed != plain
    assert packed == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("format", ["nf4-bnb", "int4-torchao", "int8-quanto"])
def test_a_resumed_run_has_the_same_adapter(train: Runner, format: str) -> None:
    whole = load_file(train("whole", quantize(format), "run.steps=2").adapter)
    train("parts", quantize(format), "run.steps=1")
    parts = load_file(train("parts", quantize(format), "run.steps=2").adapter)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("format", ["nf4-bnb", "int4-torchao"])
def test_an_adapter_of_linear_layers_and_convolutions_loads_into_the_pipeline_of_the_checkpoint(
    train: Runner, twin: Path, format: str
) -> None:
    done = train("packed", quantize(format), "run.steps=2", 'plugins.lora.targets=["to_q", "conv_point"]')
    pipeline = SanaPipeline.from_pretrained(twin)
    pipeline.load_lora_weights(done.path / "final")
    loaded = dict(pipeline.transformer.named_parameters())
    saved = load_file(done.adapter)
    assert len(saved) == 2 * 4 * 3
    for name, value in saved.items():
        parameter, kind, _ = name.removeprefix("transformer.").rsplit(".", 2)
        assert torch.equal(loaded[f"{parameter}.{kind}.default_0.weight"], value)
        assert value.any()
    assert [path.name for path in (done.path / "final").rglob("*.safetensors")] == [done.adapter.name]


def test_samples_between_steps_change_nothing_of_the_training(train: Runner) -> None:
    samples = """
[validation]
every = 1
prompts = { grey = "a shade" }
resolutions = ["64x64"]
steps = 2
"""
    sampled = train("sampled", quantize() + samples, "run.steps=3")
    assert sampled.losses == train("plain", quantize(), "run.steps=3").losses


def test_what_was_packed_is_told(train: Runner) -> None:
    told = train("packed", quantize("int8-quanto", text_encoders='"nf4-bnb"', double_quantization="true"), "run.steps=1").messages
    assert "quantize: int8-quanto for 40 layers with 0.06 M of 0.09 M parameters" in told
    assert "0.03 M stay as they are, 0.01 M of them in convolutions" in told
    assert "quantize: packed 40 layers of the model in int8-quanto within" in told
    assert "quantize: packed 14 layers of text_encoder in nf4-bnb within" in told


def test_embeddings_of_another_text_encoder_are_not_taken_from_the_cache(train: Runner) -> None:
    plain = train("plain", LORA, "run.steps=1")
    packed = train("packed", quantize(None, text_encoders='"fp4-bnb"'), "run.steps=1")
    fresh = train("fresh", quantize(None, text_encoders='"fp4-bnb"'), "run.steps=1", "run.cache_dir=another")
    again = train("again", quantize(None, text_encoders='"fp4-bnb"'), "run.steps=1")
    assert packed.losses == fresh.losses == again.losses != plain.losses
    assert "encoding captions" in packed.messages
    assert "encoding samples" not in packed.messages  # latents have nothing to do with it
    assert "encoding" not in again.messages


def test_text_encoders_alone_may_be_quantised_where_the_model_itself_is_trained(train: Runner) -> None:
    done = train("full", '[plugins.quantize]\ntext_encoders = "int8-bnb"\n', "run.steps=1")
    trained = SanaTransformer2DModel.from_pretrained(done.path / "final/transformer")
    assert not any(isinstance(module, QuantizedLinear | QuantizedPointwise) for module in trained.modules())


def refusals(file: Path) -> str:
    """What is wrong with a config, or nothing."""
    try:
        assemble(load_config(file))
    except ConfigErrors as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (quantize(), ""),
        (quantize().removeprefix(LORA), "format: without an adapter the weights of sana are themselves trained.*add .plugins.lora."),
        (quantize(keep='["to_x"]'), r"keep: 'to_x' matches no linear layer.*the nearest are to_"),
        (quantize(modules='["to_q"]', keep='["to_q"]'), "there is nothing left to quantise"),
        (quantize(None), "give `format`, such as .*, or `text_encoders`, or both"),
        (quantize(None, text_encoders='"int8-bnb"', keep='["to_q"]'), "is not quantised without `format`"),
        (quantize("int8-bnb", double_quantization="true"), "`double_quantization` is for nf4-bnb and fp4-bnb"),
        (quantize(keep='["(to"]'), r"'\(to' is no regular expression"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(write: Callable[[str, str], Path], table: str, sentence: str) -> None:
    found = refusals(write("config", table))
    assert re.search(sentence, found, re.DOTALL)
    assert bool(found) == bool(sentence)


def test_compiled_blocks_must_be_computed_again_in_backward_or_would_keep_what_is_unpacked(write: Callable[[str, str], Path]) -> None:
    file = write("config", quantize())
    with pytest.raises(ConfigErrors, match="compiled blocks keep what they have unpacked until backward"):
        assemble(load_config(file, ["run.compile='blocks'"]))
    assemble(load_config(file, ["run.compile='blocks'", "run.gradient_checkpointing=true"]))


def test_a_format_that_cannot_be_had_here_is_refused_with_those_that_can(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [one for one in sys.modules if one.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "torchao", None)
    found = refusals(write("config", quantize("fp8-torchao")))
    assert "pip install 'tunesmith-quantize[torchao]'. Here there are nf4-bnb, fp4-bnb, int8-bnb, int8-quanto" in found


@pytest.mark.parametrize(("on", "devices"), [("cpu", ["cpu", "cuda"]), ("device", ["cuda"])])
def test_a_format_must_be_there_where_weights_are_packed_and_where_they_are_used(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, on: str, devices: list[str]
) -> None:
    asked = []
    monkeypatch.setattr(Format, "obstacle", lambda format, *places: asked.append([place.type for place in places]))
    assemble(load_config(write("config", quantize("int8-bnb", on=f'"{on}"')), ["run.device=cuda"]))
    assert asked == [devices]


@pytest.mark.parametrize(("on", "place"), [("cpu", "cpu"), ("device", "meta")])
def test_weights_are_packed_where_the_setting_says(monkeypatch: pytest.MonkeyPatch, on: str, place: str) -> None:
    """The device of the run is one that holds nothing, and packing itself is left out."""
    places = []
    monkeypatch.setattr("tunesmith_quantize.plugin.quantize_layers", lambda *given: places.append(given[-1].type))
    run: Any = SimpleNamespace(is_rehearsal=False, device=torch.device("meta"), progress=Progress("quiet"))
    model = Mock(spec=Model, encoders={"text_encoder": torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(64, 64)))})
    settings = QuantizeSettings.model_validate({"text_encoders": "int8-bnb", "on": on})
    loading = Quantize("quantize", settings).load_model(run, Part.ENCODERS)
    next(loading)
    with pytest.raises(StopIteration):
        loading.send(model)
    assert places == [place]


@pytest.mark.parametrize("format", ["nf4-bnb", "int4-torchao"])
def test_a_format_that_ruins_a_checkpoint_is_refused_with_the_familys_reason(tmp_path: Path, format: str) -> None:
    checkpoint = FAMILIES["wan_s2v"].family_type.tiny(tmp_path / "checkpoint")
    file = tmp_path / "config.toml"
    file.write_text(config_text("wan_s2v", checkpoint) + quantize(format))
    assert f'format = "{format}": the quality of Wan S2V collapses' in refusals(file)
    file.write_text(config_text("wan_s2v", checkpoint) + quantize("int8-torchao"))
    assert refusals(file) == ""


FAMILIES: dict[str, type[FamilyPlugin[Any]]] = {name: load_class(name) for name in ("sana", "sana_video", "wan_s2v")}  # type: ignore[misc]


@contextmanager
def at_work(family: str, folder: Path, plugins: str) -> Iterator[Case]:
    """A family on its twin, with plugins."""
    checkpoint = FAMILIES[family].family_type.tiny(folder / "checkpoint")
    file = folder / "config.toml"
    file.write_text(config_text(family, checkpoint) + plugins)
    config = load_config(file)
    cast = assemble(config)
    [plugin] = [plugin for plugin in cast.hooks.plugins if isinstance(plugin, FamilyPlugin)]
    with FileHashes(folder / "hashes.sqlite") as hashes, Progress("quiet") as progress:
        run = Run(config, cast.family, cast.hooks, Engine(config.run), RunDirectory(folder / "run"), hashes, progress)
        yield Case(checkpoint, cast.family, plugin, run)


@pytest.mark.parametrize(
    ("family", "format", "error"), [("sana", "nf4-bnb", 0.2), ("sana_video", "fp8-torchao", 0.06), ("wan_s2v", "int8-bnb", 0.02)]
)
def test_every_family_predicts_nearly_the_same_and_trains_its_adapter(family: str, format: str, error: float, tmp_path: Path) -> None:
    predictions = []
    for plugins in (LORA, quantize(format)):
        with at_work(family, tmp_path, plugins) as case:
            batch = case.batch(case.frames())
            noisy = torch.randn(batch.tensor("latents").shape, generator=torch.Generator().manual_seed(0))
            case.model.denoiser.enable_gradient_checkpointing()
            case.model.denoiser.train()
            prediction = case.model.predict(noisy, torch.tensor([0.3, 0.8]), batch)
            prediction.square().mean().backward()
            predictions.append(prediction.detach())
    gradients = {name: one.grad for name, one in case.model.denoiser.named_parameters() if one.requires_grad}
    assert all(".lora_" in name and grad is not None and grad.isfinite().all() for name, grad in gradients.items())
    assert all(grad is not None and grad.any() for name, grad in gradients.items() if ".lora_B." in name)
    packed = [module for module in case.model.denoiser.modules() if isinstance(module, QuantizedLinear | QuantizedPointwise)]
    assert len(packed) >= 10 * case.family.num_blocks
    plain, found = predictions
    assert 0 < (found - plain).norm() / plain.norm() < error

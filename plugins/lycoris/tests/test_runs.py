"""Every family with adapters, and whole runs: an interrupted one ends as one that was not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.families.conftest import FAMILIES, Case, config_text
from tunesmith import Batch, FamilyPlugin, Model
from tunesmith.config import ConfigErrors, load_config
from tunesmith.data.hashing import FileHashes
from tunesmith.discovery import load_class
from tunesmith.engine import Engine
from tunesmith.progress import Progress
from tunesmith.run import Run
from tunesmith.rundir import RunDirectory
from tunesmith.session import assemble, run

TABLES = {
    "lokr": "[plugins.lycoris]\nrank = 1\nalpha = 2\nfactor = 4",
    "dora": """[plugins.lycoris]
algo = "locon"
rank = 2
dora_wd = true
overrides = { "attn2.to_k" = { algo = "ia3" }, proj_out = { algo = "full" } }""",
}


@contextmanager
def at_work(family: str, checkpoint: Path, folder: Path, tables: str) -> Iterator[Case]:
    """A family on its twin, with these tables in its config."""
    folder.mkdir()
    file = folder / "config.toml"
    file.write_text(config_text(family, checkpoint) + tables)
    config = load_config(file)
    cast = assemble(config)
    [plugin] = [plugin for plugin in cast.hooks.plugins if plugin.name == family]
    assert isinstance(plugin, FamilyPlugin)
    with FileHashes(folder / "hashes.sqlite") as hashes, Progress("quiet") as progress:
        yield Case(
            checkpoint,
            cast.family,
            plugin,
            Run(config, cast.family, cast.hooks, Engine(config.run), RunDirectory(folder), hashes, progress),
        )


def predicted(model: Model, batch: Batch) -> Tensor:
    shape = batch.tensor("latents").shape
    return model.predict(torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.linspace(0.3, 0.8, shape[0]), batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_adapters_that_diffusers_reads(family: str, tmp_path: Path) -> None:
    kind = load_class(family)
    assert issubclass(kind, FamilyPlugin)
    checkpoint = kind.family_type.tiny(tmp_path / "checkpoint")
    with at_work(family, checkpoint, tmp_path / "adapted", TABLES["lokr"]) as case:
        batch, model = case.batch(case.frames()), case.model
        adapters = {name: value for name, value in model.denoiser.named_parameters() if value.requires_grad}
        assert len(adapters) >= 3 * 8 * len(model.blocks)  # of two attentions with four projections each
        with torch.no_grad(), model.without_adapters():
            base = predicted(model, batch)
        assert torch.equal(predicted(model, batch).detach(), base)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for value in adapters.values():
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.2)
        gradients = []
        for again in (False, True):
            if again:
                model.denoiser.enable_gradient_checkpointing()
            model.denoiser.train().zero_grad(set_to_none=True)
            prediction = predicted(model, batch)
            prediction.square().mean().backward()
            gradients.append({name: value.grad for name, value in adapters.items()})
        for name, value in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], value, rtol=0, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = predicted(model, batch)
        torch.testing.assert_close(rounded.float(), prediction, rtol=0.1, atol=0.1 * float(prediction.detach().abs().max()))
        case.run.hooks.save_checkpoint(case.run, tmp_path / "saved")
    with at_work(family, checkpoint, tmp_path / "plain", "") as case, torch.no_grad():
        case.model.denoiser.load_lora_adapter(tmp_path / "saved/diffusers", use_safetensors=True)
        loaded = predicted(case.model, batch)
    assert (loaded - base).abs().max() > 0.01
    torch.testing.assert_close(loaded, prediction.detach(), rtol=0, atol=1e-5)


Runner = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, twin: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run a config with `tables`, and `--set` overrides; gives the run's directory."""
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        Image.fromarray(np.full((64, 64, 3), 60 * number, np.uint8)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"shade {number}")

    def start(name: str, tables: str, *overrides: str) -> Path:
        file = tmp_path / f"{name}.toml"
        file.write_text(
            f"""
[run]
steps = 4
precision = "no"
device = "cpu"

[model]
family = "sana"
path = {str(twin)!r}
complex_human_instruction = false

[optimizer]
lr = 1e-2

[[datasets]]
path = "pictures"
resolution = 64

{tables}
"""
        )
        with Progress("quiet") as progress:
            return run(load_config(file, overrides), "latest", progress)

    return start


@pytest.mark.parametrize("table", TABLES)
def test_a_resumed_run_ends_with_the_same_adapters_and_the_same_average(train: Runner, table: str) -> None:
    tables = f"{TABLES[table]}\nmodule_dropout = 0.2\n[plugins.ema]\ndecay = 0.9\n"
    whole = train("whole", tables)
    train("parts", tables, "run.steps=2")
    parts = train("parts", tables)
    for name in ("pytorch_lora_weights.safetensors", "ema/pytorch_lora_weights.safetensors"):
        first, second = load_file(whole / "final" / name), load_file(parts / "final" / name)
        assert all(torch.equal(first[key], second[key]) for key in first | second)
        assert any(value.any() for key, value in first.items() if key.endswith(("lokr_w2_b", "lora_up.weight")))
    assert not list((whole / "final").glob("transformer"))


def test_a_run_goes_on_from_the_final_file_of_another(train: Runner) -> None:
    first = train("first", TABLES["lokr"])
    second = train("second", f"{TABLES['lokr']}\ninit_from = '{first}/final'", "run.steps=1", "optimizer.lr=1e-30")
    before, after = (load_file(one / "final/pytorch_lora_weights.safetensors") for one in (first, second))
    assert all(torch.equal(before[key], after[key]) for key in before | after)


QUANTIZED = "\n[plugins.quantize]\nformat = 'int8-bnb'\nmodules = ['to_q', 'proj_out']\n"


@pytest.mark.parametrize(
    ("table", "purpose", "count", "first"),
    [
        ("algo = 'full'", "whole differences", 8, "transformer_blocks.0.attn1.to_q"),
        ("dora_wd = true", "DoRA", 8, "transformer_blocks.0.attn1.to_q"),
        ("overrides = { proj_out = { algo = 'full' } }", "whole differences", 1, "proj_out"),
    ],
)
def test_what_needs_weights_that_another_plugin_packs_is_refused_before_anything_is_loaded(
    train: Runner, tmp_path: Path, table: str, purpose: str, count: int, first: str
) -> None:
    with pytest.raises(ConfigErrors) as raised:
        train("packed", f"[plugins.lycoris]\n{table}{QUANTIZED}")
    assert str(raised.value) == (
        f"{tmp_path / 'packed.toml'}:19: [plugins.lycoris] lycoris needs the weights of layers as they are for {purpose}, and quantize "
        f"packs {count} of them, such as that of {first}: let quantize leave them as they are, or lycoris do without {purpose}"
    )
    assert not (tmp_path / "runs").exists()


def test_on_packed_weights_what_adds_to_a_layer_is_trained_and_what_needs_other_layers_too(train: Runner) -> None:
    for name, table in (("added", "dora_wd = false"), ("scaled", "algo = 'ia3'"), ("apart", "algo = 'full'\ntargets = ['to_k']")):
        final = train(name, f"[plugins.lycoris]\n{table}{QUANTIZED}", "run.steps=1") / "final/pytorch_lora_weights.safetensors"
        assert load_file(final)


def test_two_adapters_of_the_denoiser_are_refused(train: Runner) -> None:
    with pytest.raises(ConfigErrors, match="both adapt the denoiser"):
        train("both", TABLES["lokr"] + "\n[plugins.lora]\n")

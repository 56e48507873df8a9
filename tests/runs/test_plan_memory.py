"""What `tune plan` tells of memory: what each phase takes, what would fit, and why there is no forecast where there is none."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from core.tests.conftest import Installation, installation
from tunesmith import Lever, savings
from tunesmith.config import load_config
from tunesmith.forecast import optimizer_rates
from tunesmith.levers import all_levers
from tunesmith.plan import Plan, make_plan
from tunesmith.savings import LEAST_RESERVED
from tunesmith.session import assemble

__all__ = ["installation"]

THRIFTY = """
from tunesmith import Lever, NoSettings

class Probe(Plugin[NoSettings]):
    '''Saves memory.'''
    stage = Stage.PLACE
    levers = (Lever({"plugins.thrifty.enabled": True}, "a little time", 0.5),)
"""
PEEKS = """
from tunesmith import NoSettings

class Probe(Plugin[NoSettings]):
    '''Looks at the value of the loss, which a tensor without values does not have.'''
    stage = Stage.OBJECTIVE

    @hookimpl(wrapper=True)
    def compute_loss(self, run, step):
        loss = yield
        if loss.total.item() < 0:
            raise ValueError
        return loss
"""
SEES = """
import torch
from tunesmith import FieldShape, NoSettings

class Probe(Plugin[NoSettings]):
    '''Makes a field of what it sees, by way of 64 MiB.'''
    stage = Stage.OBJECTIVE

    def field_shapes(self, config, family, frames, height, width):
        return {"seen": FieldShape((3,), needs=("pixels",))}

    @hookimpl(wrapper=True)
    def encode_batch(self, run, batch):
        encoded = yield
        if encoded.wants("seen"):
            assert run.is_rehearsal and batch.pixels.shape[:2] == (2, 3)
            seen = torch.zeros(2**24)
            encoded.fields["seen"] = seen[:3].clone()
        return encoded
"""


VAGUE = """
from tunesmith import NoSettings

class Probe(Plugin[NoSettings]):
    '''Cannot tell what its fields look like.'''
    stage = Stage.OBJECTIVE

    def field_shapes(self, config, family, frames, height, width):
        """


@pytest.fixture
def plan(tmp_path: Path, twin: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """The plan of a run on the twin and on pictures of 64x64 and 128x64."""
    monkeypatch.chdir(tmp_path)

    def made(*overrides: str, rest: str = "", limit: int | None = None) -> Plan:
        Path("c.toml").write_text(
            f'[run]\nsteps = 2\ndevice = "cpu"\n[model]\nfamily = "sana"\npath = "{twin}"\n'
            f'[[datasets]]\npath = "{pictures}"\nresolution = 64\nbatch_size = 2\n{rest}'
        )
        return make_plan(load_config(Path("c.toml"), overrides), vram=None if limit is None else limit + LEAST_RESERVED)

    return made


def printed(plan: Plan) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120, soft_wrap=True).print(plan.render())
    return stream.getvalue()


def test_each_phase_is_told_for_the_largest_batch_that_is_trained(plan):
    made = plan(rest='[validation]\nprompts = { a = "a square" }\nresolutions = ["64x64"]\n')
    memory = made.memory
    [facts] = made.datasets
    largest = max(facts.buckets, key=lambda bucket: bucket.width * bucket.height)
    assert len(facts.buckets) == 2
    assert (memory.size.width, memory.size.height, memory.size.frames) == (largest.width, largest.height, 1)
    assert memory.batch_size == 2
    phases = {phase.name: phase for phase in memory.phases}
    assert list(phases) == ["caching", "training", "validation", "saving"]
    training = phases["training"]
    assert training.weights == pytest.approx(4 * memory.parameters, rel=0.01)  # fp32, and a few buffers
    assert training.gradients == 4 * memory.parameters
    assert training.optimizer == pytest.approx(8 * memory.parameters, rel=0.001)  # two moments
    assert memory.peak == max(phase.weights + phase.gradients + phase.optimizer + phase.activations for phase in memory.phases)
    told = printed(made)
    assert f"memory of a model of 0.1 M parameters, forecast for 2 samples of {largest.width}x{largest.height} at a time:\n" in told
    assert re.search(r"phase +weights +gradients +optimizer +activations +peak\n +caching .*\n +training +0\.34 MiB +0\.34 MiB", told)


def test_what_plugins_train_beside_weights_in_bf16_has_moments_in_fp32(plan):
    made = plan("run.weights=bf16", "plugins.lora.rank=16")
    training = next(phase for phase in made.memory.phases if phase.name == "training")
    assert training.optimizer == pytest.approx(2 * training.gradients, rel=0.01)  # two moments of four bytes beside a gradient of four


def test_of_muon_each_weight_has_what_its_own_side_keeps(plan):
    made = plan("optimizer.type=muon")
    training = next(phase for phase in made.memory.phases if phase.name == "training")
    shapes = assemble(load_config(Path("c.toml"))).family.on_meta().named_modules()
    layers = [layer for name, layer in shapes if name.startswith("transformer_blocks.") and isinstance(layer, torch.nn.Linear)]
    matrices = sum(layer.weight.numel() for layer in layers)
    assert 0 < matrices < made.memory.parameters
    assert training.optimizer == pytest.approx(4 * matrices + 8 * (made.memory.parameters - matrices), rel=0.01)


@pytest.mark.parametrize(("type_", "state"), [("prodigy", 16), ("rmsprop", 4), ("sgd", 0)])
def test_an_optimizer_that_goes_from_weight_to_weight_is_not_taken_for_one_that_updates_all_at_once(plan, type_, state):
    plan()
    rate = "1.0" if type_ == "prodigy" else "0.001"
    rates = optimizer_rates(load_config(Path("c.toml"), ["run.device=cpu", f"optimizer.type={type_}", f"optimizer.lr={rate}"]))
    assert rates is not None
    [each] = rates.values()
    assert each.state == pytest.approx(state, abs=0.01)
    assert not each.at_once


def test_encoders_have_the_precision_that_they_have_on_a_device(plan):
    caching = {device: plan(f"run.device={device}").memory.phases[0].weights for device in ("auto", "cpu")}
    in_bf16 = plan("model.text_encoder_dtype=bf16").memory.phases[0].weights
    assert caching["auto"] == in_bf16 < caching["cpu"]


def test_what_is_proposed_fits_by_the_forecast_of_the_run_with_it(plan, monkeypatch):
    levers = [
        Lever({"run.weights": "bf16"}, "digits", 3.0),
        Lever({"plugins.nothing.of_the_kind": 1}, "is refused", 0.0),
        Lever({"datasets.0.batch_size": 1}, "time", 0.1),
    ]
    monkeypatch.setattr(savings, "all_levers", lambda config: levers)
    limit = plan("run.cache=false", "datasets.0.batch_size=1", "run.weights=bf16").memory.peak
    made = plan("run.cache=false", limit=limit)
    assert made.memory.peak > limit
    assert made.savings.fits
    assert made.savings.proposed.settings == ["datasets.0.batch_size=1", "run.weights=bf16"]
    assert made.savings.proposed.peak == limit
    assert {one.settings[0] for one in made.savings.options} >= {"datasets.0.batch_size=1", "run.weights=bf16"}
    told = printed(made)
    assert "\n  --set datasets.0.batch_size=1 --set run.weights=bf16\n  it costs: time\n  it costs: digits\n" in told
    assert re.search(r"each alone:\n  [\d.]+ MiB less: [\d.]+ MiB, with datasets.0.batch_size=1\n      it costs: time\n", told)


def test_levers_are_those_of_the_core_and_of_every_plugin_that_can_be_imported(plan, installation: Installation):
    installation.plugin("thrifty", THRIFTY)
    installation.plugin("broken", "import nowhere_to_be_found")
    plan()
    found = all_levers(load_config(Path("c.toml")))
    changed = [" ".join(lever.changes) for lever in found]
    assert "plugins.thrifty.enabled" in changed
    assert {"run.gradient_checkpointing", "plugins.lora.rank"} <= set(changed)
    assert [lever.price for lever in found] == sorted(lever.price for lever in found)
    on = load_config(Path("c.toml"), ["run.gradient_checkpointing=true", "run.activations=cpu", "optimizer.type=sgd"])
    assert not {"run.gradient_checkpointing", "run.activations", "optimizer.type"} & {
        key for lever in all_levers(on) for key in lever.changes if len(lever.changes) == 1
    }


def test_levers_of_families_are_those_of_the_runs_own(plan):
    plan()
    found = [key for lever in all_levers(load_config(Path("c.toml"))) for key in lever.changes]
    assert sorted(key for key in found if key.startswith("model.")) == ["model.vae_slicing", "model.vae_tiling"]


def test_a_plugin_that_needs_values_is_a_reason_and_no_failure_of_the_plan(plan, installation: Installation):
    installation.plugin("peeks", PEEKS)
    made = plan(rest="[plugins.peeks]\n", limit=0)
    assert not made.problems
    assert (made.memory.phases, made.memory.peak, made.savings) == ([], None, None)
    assert "a step cannot be gone through with shapes alone" in made.memory.reason
    assert "'peeks'" in made.memory.reason
    assert "M parameters: no forecast, for a step cannot be gone through" in printed(made)


def test_how_a_plugin_makes_a_field_is_gone_through_where_it_says_what_it_is_made_of(plan, installation: Installation):
    installation.plugin("sees", SEES)
    made = plan(rest="[plugins.sees]\n")
    [caching] = [phase for phase in made.memory.phases if phase.name == "caching"]
    assert caching.activations >= 4 * 2**24
    assert made.memory.notes == []


def test_an_encoder_whose_configuration_is_not_here_is_named(plan, twin: Path, tmp_path):
    whole = plan().memory
    lacking = shutil.copytree(twin, tmp_path / "lacking")
    (lacking / "text_encoder" / "config.json").unlink()
    made = plan(f"model.path='{lacking}'")
    [note] = made.memory.notes
    assert note.startswith("not counted while the cache is filled: text_encoder, whose configuration is not on this machine")
    assert f"note: {note}" in printed(made)
    assert made.memory.phases[0].weights < whole.phases[0].weights
    assert made.memory.phases[1] == whole.phases[1]
    [note] = plan(f"model.path='{lacking}'", "run.cache=false").memory.notes
    assert note.startswith("not counted in every step, where samples are encoded: text_encoder")


def test_memory_is_not_gone_through_where_that_is_not_asked_for(plan):
    plan()
    made = make_plan(load_config(Path("c.toml")), forecasts=False)
    assert (made.memory.phases, made.memory.peak, made.memory.reason) == ([], None, "it was not asked for")
    assert "M parameters: no forecast, for it was not asked for\n" in printed(made)


@pytest.mark.parametrize("body", ["return None", "return self.nothing", "raise ValueError"])
def test_a_plugin_that_cannot_describe_its_fields_is_named_and_no_failure_of_the_plan(plan, installation: Installation, body):
    installation.plugin("vague", VAGUE + body)
    made = plan(rest="[plugins.vague]\n")
    assert not made.problems
    assert made.memory.phases == []
    assert made.memory.reason.endswith("; in field_shapes of plugin 'vague' (acme-vague 1.0)")


def test_an_encoder_that_cannot_be_made_of_its_configuration_is_no_failure_of_the_plan(plan, twin, tmp_path):
    shutil.copytree(twin, tmp_path / "odd")
    file = tmp_path / "odd" / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": "two"}))
    made = plan("model.path=odd")
    assert made.memory.phases == []
    assert "num_hidden_layers" in made.memory.reason
    assert "plugin 'sana'" in made.memory.reason


def test_a_run_that_cannot_start_is_not_forecast(plan):
    made = plan("datasets.0.batch_size=500", limit=0)
    assert made.problems
    assert made.memory.reason == "the run cannot start as it is"
    assert made.savings is None

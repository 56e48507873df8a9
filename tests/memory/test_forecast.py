"""The forecast against what runs of 60 M parameters and more really have alive at once, on every family."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.matrix.stage import write_encoder

from .measuring import Bench, measure

LORA = "[plugins.lora]\nrank = 16\n"
TOLERANCE = 0.15
EXACT = 0.05
"""What these keep, most of them to a thousandth; the tolerance is what is promised."""
CHECKPOINTING = "run.gradient_checkpointing=true"


def case(name: str, family: str, tables: str, *overrides: str, daily: bool = False) -> object:
    """A configuration; the suite runs those that are `daily`, and `make matrix` all."""
    marks = pytest.mark.slow if daily else pytest.mark.matrix
    return pytest.param(family, tables, overrides, id=f"{family}-{name}", marks=marks)


CASES = [
    case("full", "sana", ""),
    case("lora", "sana", LORA, daily=True),
    case("lora in bf16", "sana", LORA, "run.precision=bf16"),
    case("accumulation", "sana", "", "run.gradient_accumulation=2"),
    case("batch of two", "sana", LORA, "run.batch_size=2"),
    case("nf4", "sana", LORA + '[plugins.quantize]\nformat = "nf4-bnb"\n', "run.precision=bf16"),
    case("int8", "sana", LORA + '[plugins.quantize]\nformat = "int8-bnb"\n'),
    case("8-bit optimizer", "sana", "", "optimizer.type=adamw8bit"),
    case("one weight after the other", "sana", "", "optimizer.type=rmsprop"),
    case("group offload", "sana", LORA + "[plugins.group_offload]\n", CHECKPOINTING, daily=True),
    case("group offload of what is trained", "sana", "[plugins.group_offload]\n", CHECKPOINTING),
    case("activations on the machine", "sana", LORA, "run.activations=cpu"),
    case("lycoris", "sana", '[plugins.lycoris]\nalgo = "loha"\n'),
    case("crepa", "sana", LORA + '[plugins.crepa]\nencoder = "ENCODER"\nimage_size = 518\nblock = 1\n'),
    case("average on the device", "sana", '[plugins.ema]\ndevice = "run"\n'),
    case("average on the machine", "sana", "[plugins.ema]\n"),
    case("checkpointing", "sana_video", LORA, CHECKPOINTING),
    case("every second block", "sana_video", LORA, "run.gradient_checkpointing=2"),
    case("tread", "sana_video", LORA + "[plugins.tread]\nroutes = [{ ratio = 0.5, start = 1, end = 2 }]\n"),
    case("weights in bf16", "sana_video", "", "run.weights=bf16", "run.precision=bf16"),
    case("rollout", "sana_video", LORA + "[plugins.scheduled_sampling]\nprobability = 1.0\nmax_steps = 1\n"),
    case("full", "wan_s2v", ""),
    case("chunked feed-forward", "wan_s2v", LORA + "[plugins.chunked_feed_forward]\n"),
    case("fused backward pass", "wan_s2v", "", "optimizer.fused_backward_pass=true", "optimizer.clip_norm=false"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("wide")
    return Bench(folder, write_encoder(folder / "encoder"))


@pytest.mark.parametrize(("family", "tables", "overrides"), CASES)
def test_each_phase_takes_what_was_told(
    bench: Bench, tmp_path: Path, record_property, family: str, tables: str, overrides: tuple[str, ...]
) -> None:
    config = bench.config(family, tables, f"run.cache_dir={tmp_path}", *overrides)
    told = {phase.name: phase.peak for phase in bench.forecast(config).phases}
    measured = measure(config)
    record_property("resident", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    record_property("told", told)
    record_property("measured", measured)
    assert told.keys() == measured.keys() == {"caching", "training", "validation", "saving"}
    off = {name: told[name] / peak - 1 for name, peak in measured.items()}
    assert max(map(abs, off.values())) < EXACT < TOLERANCE, off

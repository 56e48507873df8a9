"""What each setting that saves memory leaves of a run's peak, what it costs in time, and what it does to the loss.

`python bench/memory.py` takes some minutes and prints a table; `--write FILE` also puts it between the markers of a Markdown
file. Each row is a process of its own: it trains a Sana or a Wan S2V of 65 to 71 M parameters on the CPU with the row's settings,
and then without them, so that their times can be compared. Peaks are those of live tensors in the steps, without what the settings
keep in the memory of the machine, which a CPU and its pretended device share. With a GPU `--device` takes the published widths
with random weights instead; the allocator gives the peaks and is capped at `--cap`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measuring import part_of, put, table

sys.path.insert(0, str(Path(__file__).parent.parent))

part = partial(part_of, "memory", threads=1)
LORA = "[plugins.lora]\nrank = 16\n"
NF4 = LORA + '[plugins.quantize]\nformat = "nf4-bnb"\n'
INT8 = LORA + '[plugins.quantize]\nformat = "int8-bnb"\n'
GROUPS = "[plugins.group_offload]\n"
CHECKPOINTING, BF16 = "run.gradient_checkpointing=true", "run.precision=bf16"


@dataclass(frozen=True)
class Row:
    """Settings of a family: tables and overrides, and the tables of the run that it is compared with."""

    family: str
    tables: str = ""
    overrides: tuple[str, ...] = ()
    beside: str = ""


ROWS: Mapping[str, Row] = {
    "all weights": Row("sana"),
    "group_offload, checkpointing": Row("sana", GROUPS, (CHECKPOINTING,)),
    "fused_backward_pass": Row("sana", "", ("optimizer.fused_backward_pass=true", "optimizer.clip_norm=false")),
    "adamw8bit": Row("sana", "", ("optimizer.type=adamw8bit",)),
    "ema on the device": Row("sana", '[plugins.ema]\ndevice = "run"\n'),
    'weights = "bf16", adamw_kahan': Row("sana", "", ("run.weights=bf16", BF16, "optimizer.type=adamw_kahan")),
    "lora": Row("sana", LORA, (), LORA),
    "lora, checkpointing": Row("sana", LORA, (CHECKPOINTING,), LORA),
    "lora, every second block": Row("sana", LORA, ("run.gradient_checkpointing=2",), LORA),
    'lora, activations = "cpu"': Row("sana", LORA, ("run.activations=cpu",), LORA),
    "lora, int8-bnb": Row("sana", INT8, (), LORA),
    "lora, nf4-bnb": Row("sana", NF4, (), LORA),
    "lora, group_offload, checkpointing": Row("sana", LORA + GROUPS, (CHECKPOINTING,), LORA),
    "lora, nf4-bnb, adamw8bit, group_offload, checkpointing": Row(
        "sana", NF4 + "double_quantization = true\n" + GROUPS, (CHECKPOINTING, "optimizer.type=adamw8bit"), LORA
    ),
    "wan_s2v: lora, chunked_feed_forward, checkpointing": Row("wan_s2v", LORA + "[plugins.chunked_feed_forward]\n", (CHECKPOINTING,), LORA),
}
"""On the CPU: settings alone, and as docs/memory.md recommends them together."""
DEVICE_ROWS: Mapping[str, tuple[str, str, str, tuple[int, int, int], tuple[str, ...]]] = {
    "Sana 1.6B, lora": ("sana", 'variant = "1.6b-1024"', LORA, (1, 1024, 1024), ()),
    "Sana 1.6B, lora, checkpointing": ("sana", 'variant = "1.6b-1024"', LORA, (1, 1024, 1024), (CHECKPOINTING,)),
    "Sana 1.6B, lora, nf4-bnb, group_offload": ("sana", 'variant = "1.6b-1024"', NF4 + GROUPS, (1, 1024, 1024), (CHECKPOINTING,)),
    "Sana Video 2B, lora, checkpointing": ("sana_video", 'variant = "2b-480p"', LORA, (81, 480, 832), (CHECKPOINTING,)),
    "Sana Video 2B, lora, group_offload": ("sana_video", 'variant = "2b-480p"', LORA + GROUPS, (81, 480, 832), (CHECKPOINTING,)),
    "Wan S2V 14B, lora, int8-bnb, group_offload": ("wan_s2v", 'variant = "s2v-14b-2.2"', INT8 + GROUPS, (81, 480, 832), (CHECKPOINTING,)),
}
"""On a GPU: plugin, `[model]`, tables, frames with height and width, and overrides, all in bf16."""


def row(name: str, folder: str) -> dict[str, Any]:
    """Peak, forecast, resident memory and loss of a row; processor time of its last step beside one without its settings."""
    import torch

    from tests.memory.measuring import Bench, measure
    from tunesmith.trainer import Trainer

    torch.set_num_threads(1)
    seconds: list[float] = []
    losses: list[float] = []
    one_step, report = Trainer.one_step, Trainer.report

    def timed(trainer: Trainer, steps: Any) -> None:
        began = time.process_time()
        one_step(trainer, steps)
        seconds.append(time.process_time() - began)

    def told(trainer: Trainer, step: Any, loss: float, *rest: Any) -> None:
        losses.append(loss)
        report(trainer, step, loss, *rest)

    Trainer.one_step, Trainer.report = timed, told  # type: ignore[method-assign,assignment]
    own, bench = ROWS[name], Bench(Path(folder), Path(folder))
    overrides = ("run.steps=3", "validation.at_end=false")
    config = bench.config(own.family, own.tables, *overrides, *own.overrides)
    foretold = next(phase.peak for phase in bench.forecast(config).phases if phase.name == "training")
    peak = measure(config)["training"]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with_settings, loss = min(seconds), losses[-1]
    seconds.clear()
    measure(bench.config(own.family, own.beside, *overrides))
    return {"peak": peak, "foretold": foretold, "rss": resident, "time": with_settings / min(seconds), "loss": loss - losses[-1]}


def on_device(name: str, device: str, cap: str) -> dict[str, Any]:
    """Peak of the allocator, forecast and seconds of a step at real width with random weights, on one step's worth of empty fields."""
    import torch

    from tunesmith.config import load_config
    from tunesmith.data.hashing import FileHashes
    from tunesmith.engine import Engine, make_optimizer, parameter_groups
    from tunesmith.forecast import forecast
    from tunesmith.hooks import HookCaller
    from tunesmith.progress import Progress
    from tunesmith.rehearsal import Size, step_of
    from tunesmith.run import Run
    from tunesmith.rundir import RunDirectory
    from tunesmith.session import assemble, load_denoiser
    from tunesmith.understudies import FamilyUnderstudy

    family, model, tables, (frames, height, width), overrides = DEVICE_ROWS[name]
    torch.cuda.set_per_process_memory_fraction(float(cap) * 2**30 / torch.cuda.get_device_properties(device).total_memory, device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.toml"
        file.write_text(
            f"[run]\nsteps = 3\ndevice = {device!r}\n[model]\nfamily = {family!r}\n{model}\n[[datasets]]\npath = 'none'\n{tables}"
        )
        config = load_config(file, ("run.precision=bf16", "run.weights=bf16", *overrides))
        size = Size(frames, height, width)
        foretold = next(phase.peak for phase in forecast(config, assemble(config), size).phases if phase.name == "training")
        cast = assemble(config)
        plugins = [FamilyUnderstudy(one) if one.name == family else one for one in cast.hooks.plugins]
        directory, hashes = RunDirectory(Path(folder) / "run"), FileHashes(Path(folder) / "files.sqlite")
        run = Run(config, cast.family, HookCaller(plugins), Engine(config.run), directory, hashes, Progress("quiet"))
        trainable = load_denoiser(run)
        optimizer = make_optimizer(parameter_groups(trainable, config.optimizer, run.model.trunk()), config.optimizer)
        run.model.prepared = run.engine.prepare(trainable, optimizer)
        torch.cuda.reset_peak_memory_stats(device)
        seconds = []
        for _ in range(3):
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            with torch.device(device):
                run.current = step_of(run, size, 1)
            with run.autocast():
                total = run.hooks.compute_loss(run, run.current).total
            run.engine.backward(total)
            run.current = None
            run.engine.clip(config.optimizer)
            run.engine.update()
            torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return {"peak": torch.cuda.max_memory_allocated(device), "foretold": foretold, "seconds": min(seconds)}


def mb(count: float) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:,.0f} MB"


def on_cpu(names: list[str]) -> tuple[list[str], list[list[str]], list[float]]:
    """Head and lines of the table on the CPU, and the load before each."""
    lines, load = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            load.append(os.getloadavg()[0])
            found = part("row", name, folder)
            off = f"{100 * (found['foretold'] / found['peak'] - 1):+.1f} %"
            lines.append(
                [name, mb(found["peak"]), mb(found["foretold"]), off, mb(found["rss"]), f"{found['time']:.2f}x", f"{found['loss']:+.1e}"]
            )
            print(" | ".join(lines[-1]), flush=True)
    return ["settings", "peak of live tensors", "forecast", "off by", "resident", "processor time of a step", "loss"], lines, load


def on_gpu(device: str, cap: float) -> tuple[list[str], list[list[str]], list[float]]:
    """The same of the published widths on a GPU."""
    lines, load = [], []
    for name in DEVICE_ROWS:
        load.append(os.getloadavg()[0])
        found = part_of("memory", "on_device", name, device, cap)
        off = f"{100 * (found['foretold'] / found['peak'] - 1):+.1f} %"
        lines.append([name, mb(found["peak"]), mb(found["foretold"]), off, f"{found['seconds']:.2f} s"])
        print(" | ".join(lines[-1]), flush=True)
    return ["settings", "peak of the allocator", "forecast", "off by", "step"], lines, load


PARTS = {"row": row, "on_device": on_device}


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROWS, action="append", help="measure this row alone; may be repeated")
    parser.add_argument("--device", help="a GPU such as cuda, for the published widths; needs bitsandbytes there")
    parser.add_argument("--cap", type=float, default=24.0, help="GiB of the GPU that may be taken")
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file whose table is replaced")
    arguments = parser.parse_args()
    head, lines, load = on_gpu(arguments.device, arguments.cap) if arguments.device else on_cpu(arguments.only or list(ROWS))
    made = table(head, lines, load)
    print(made)
    if arguments.write:
        put(made, "memory on a GPU" if arguments.device else "memory", arguments.write)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in PARTS:
        print(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])))
    else:
        main()

"""What scheduled sampling adds to a step, against probability and `max_steps`, beside what `tune plan` foretells.

`python bench/scheduled_sampling.py` takes some minutes and prints a table; `--write FILE` also puts it between the markers
of a Markdown file. Within one run, blocks of steps with every setting alternate, and so do those without the plugin.
Counted is the time of the processor, which other work on the machine changes less than that on the wall.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import SanaTransformer2DModel
from measuring import put, table
from parts import LEAD_IN, carry_out
from workload import make_checkpoint, make_pictures, write_config

from tunesmith.data.ahead import Ahead
from tunesmith.hooks import HookCaller
from tunesmith.trainer import Trainer
from tunesmith_scheduled_sampling import ScheduledSampling, ScheduledSamplingSettings

EDGE, NUM_PICTURES = 64, 16
SIZE = {
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "num_layers": 6,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 64,
    "cross_attention_dim": 256,
}
"""Changes to the transformer of Sana's tiny twin; with 64 tokens a step is mostly forward and backward."""
RUNS = {"all weights": "", "all weights, checkpointing": "run", "LoRA": "lora"}
PLAIN = "without"
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "p = 0": {"probability": 0.0},
    "p = 0.25, at most 4 steps": {"probability": 0.25},
    "p = 0.5, at most 4 steps": {},
    "p = 0.5, at most 8 steps": {"max_steps": 8},
    "p = 0.5, at most 4 steps, unipc": {"solver": "unipc"},
    "p = 0.5, at most 4 steps, ReflexFlow": {"reflexflow": {}},
    "p = 1, at most 4 steps": {"probability": 1.0},
}


@dataclass
class Measured:
    """What blocks of steps with one setting took: processor seconds a step of each block, and predictions made besides a step's own."""

    seconds: list[float] = field(default_factory=list)
    predictions: list[float] = field(default_factory=list)
    forecast: float = 1.0


class Alternating(Trainer):
    """Blocks of steps with every setting by turns, and the same with the plugin taken out of the hooks."""

    rounds: int
    block: int
    found: dict[str, Measured]

    def train(self) -> None:
        """All blocks, in another order in every other round."""
        whole = self.run.hooks
        [plugin] = [one for one in whole.plugins if isinstance(one, ScheduledSampling)]
        without = HookCaller(one for one in whole.plugins if one is not plugin)
        with self.ahead() as steps, self.progress.training(self.run.total_steps, 0):
            self.many(steps, 2 * LEAD_IN)
            for number in range(self.rounds):
                for name in sorted((PLAIN, *SETTINGS), reverse=bool(number % 2)):
                    plugin.settings = ScheduledSamplingSettings.model_validate(SETTINGS.get(name, {}))
                    self.run.hooks = without if name == PLAIN else whole
                    one = self.found[name]
                    one.forecast = 1.0 if name == PLAIN else plugin.expected_cost(self.run.config, plugin.settings.probability)
                    before, began = counted(self), time.process_time()
                    self.many(steps, self.block)
                    one.seconds.append((time.process_time() - began) / self.block)
                    one.predictions.append((counted(self) - before) / self.block - 1)
        self.run.hooks = whole

    def many(self, steps: Ahead[Any, Any], count: int) -> None:
        """So many steps."""
        for _ in range(count):
            self.one_step(steps)


def counted(trainer: Trainer) -> int:
    """How often the denoiser has been called; a checkpointed one is called once by the step, whatever its blocks are."""
    denoiser = trainer.run.model.denoiser
    if not hasattr(denoiser, "calls"):
        denoiser.calls = 0

        def count(*_: object) -> None:
            denoiser.calls += 1

        denoiser.register_forward_hook(count)
    return int(denoiser.calls)


def measure(folder: Path, name: str, kind: str, rounds: int, block: int) -> dict[str, Measured]:
    """Seconds and predictions of every setting in one run."""
    extra = "\n[plugins.scheduled_sampling]\n" + ("\n[plugins.lora]\n" if kind == "lora" else "")
    file = folder / f"{name.replace(' ', '-')}.toml"
    write_config(file, folder / "checkpoint", folder / "pictures", steps=10**6, edge=EDGE)
    text = file.read_text() + extra
    file.write_text(text.replace("batch_size", "gradient_checkpointing = true\nbatch_size") if kind == "run" else text)

    found: defaultdict[str, Measured] = defaultdict(Measured)
    trainer = type("Alternated", (Alternating,), {"found": found, "rounds": rounds, "block": block})
    carry_out(str(file), trainer)
    return found


def lines(name: str, found: Mapping[str, Measured]) -> list[list[str]]:
    """Rows of the table: the forecast, the same for the predictions that were made, and the ratio of times."""
    plain = found[PLAIN]
    rows = []
    for setting in SETTINGS:
        one = found[setting]
        ratio = statistics.mean(one.seconds) / statistics.mean(plain.seconds)
        made = statistics.mean(one.predictions)
        expected = (one.forecast - 1) / max(expected_predictions(setting), 1e-9) * made + 1
        rows.append([name, setting, f"{one.forecast:.2f}x", f"{made:.2f}", f"{expected:.2f}x", f"{ratio:.2f}x"])
    return rows


def expected_predictions(setting: str) -> float:
    """Predictions a step besides its own, by the settings."""
    settings = ScheduledSamplingSettings.model_validate(SETTINGS[setting])
    compared = 2 * (1 - settings.chances[0]) if settings.reflexflow is not None else 0
    return settings.probability * (settings.expected_steps + compared)


def prepare(folder: Path) -> None:
    """A checkpoint of a size that computes, and pictures."""
    checkpoint = make_checkpoint(folder / "checkpoint", "tiny")
    config = {**SanaTransformer2DModel.load_config(checkpoint / "transformer"), **SIZE}
    SanaTransformer2DModel.from_config(config).save_pretrained(checkpoint / "transformer")
    make_pictures(folder / "pictures", NUM_PICTURES, EDGE)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="blocks of every setting")
    parser.add_argument("--block", type=int, default=8, help="steps in a block")
    parser.add_argument("--only", choices=RUNS, action="append", help="measure this run alone; may be repeated")
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file whose table is replaced")
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    load: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name in arguments.only or RUNS:
            load.append(os.getloadavg()[0])
            found = measure(Path(folder), name, RUNS[name], arguments.rounds, arguments.block)
            print(f"{name}: a step takes {1e3 * statistics.mean(found[PLAIN].seconds):.0f} ms of processor without the plugin", flush=True)
            rows += lines(name, found)
    head = ["trained", "setting", "foretold", "predictions made besides", "foretold for these", "measured"]
    made = table(head, rows, load)
    print(made)
    if arguments.write:
        put(made, "scheduled sampling", arguments.write)


if __name__ == "__main__":
    main()

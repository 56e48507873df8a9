"""Kill a run at aimed moments and check that what is resumed is the run that was never interrupted, bit for bit.

`python bench/kill.py [--kills 50] [--seed 0]`: a tiny twin is trained straight through once, in full and with LoRA; then
runs of the same configs are killed with SIGKILL and started again until they are done. Each kill is aimed at one of the
phases that were hit least, at random, and falls a random time after the phase began; it counts for the phase that the
killed process left on disk. Losses, every tensor of the last checkpoint and of the export, the validation pictures and the
names of all files must be equal, and no phase may have been spared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tunesmith.combined import tensors_kept
from tunesmith_sana import SanaFamily

STEPS, STEPS_TO_VALIDATION = 24, 6
CONFIG = f"""
[run]
steps = {STEPS}
batch_size = 2
gradient_accumulation = 2
precision = "no"
device = "cpu"
log_every = 1

[model]
family = "sana"
path = "twin"
complex_human_instruction = false

[optimizer]
lr = 1e-3
schedule = "cosine"
warmup = 4

[[datasets]]
path = "squares"
resolution = 64
caption_dropout = 0.3
crop = "random"
variants = 2

[[datasets]]
path = "bars"
resolution = 96
caption_dropout = 0.2

[checkpoints]
every = 3

[validation]
every = {STEPS_TO_VALIDATION}
prompts = {{ red = "a red square" }}
resolutions = ["64x64", "256x256"]
steps = 2
"""
KINDS = {"full": "", "lora": "\n[plugins.lora]\nrank = 4\nalpha = 8\ndropout = 0.1\n"}
"""What is trained, and what it adds to the config."""
PHASES = STARTING, LOADING, CACHING, STEPPING, SAMPLING, WRITING, SAVING, EXPORTING = (
    "starting",
    "loading",
    "caching",
    "taking steps",
    "sampling pictures",
    "writing pictures",
    "saving a checkpoint",
    "exporting",
)
DONE = "done"
"""Nothing can be lost any more."""
OFTEN = (STEPPING, SAMPLING, WRITING, SAVING)
"""Phases that a run passes several times."""
POLL = 0.0005
"""Seconds between two looks at the disk."""


class Attempt:
    """One process of a run, and how far it is by what it has left on disk."""

    def __init__(self, config: Path, cache: Path) -> None:
        self.run = config.parent / "runs" / config.stem
        self.cache = cache
        self.log = self.run / "events.jsonl"
        self.told_before = self.log.stat().st_size if self.log.exists() else 0
        self.begun = time.time_ns()
        command = [sys.executable, "-m", "tunesmith", "run", str(config), "--quiet", "--set", f"run.cache_dir='{cache}'"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=config.parent, env=environment, stdout=subprocess.DEVNULL)

    def phases(self) -> Iterator[str]:
        """Each phase when it begins, until the process has ended; SystemExit if it failed."""
        phase = None
        while self.process.poll() is None:
            before, phase = phase, self.phase()
            if phase != before:
                yield phase
            time.sleep(POLL)
        if self.process.returncode > 0:
            raise SystemExit(f"{self.run.name} ended with {self.process.returncode}")

    def phase(self) -> str:
        """What the process is at, or was when it was killed, by its own traces and not those of earlier attempts."""
        if self.has_touched(self.run / "validation", "."):
            return WRITING
        if self.has_touched(self.run / "checkpoints", "."):
            return SAVING
        if self.has_touched(self.run, ".final"):
            return EXPORTING
        events = self.events()
        kinds = [event["event"] for event in events]
        if not events:
            return STARTING
        if "data" not in kinds:
            return CACHING if self.has_touched(self.cache, "shard-") else LOADING
        if kinds[-1] in ("data", "end"):
            return LOADING if kinds[-1] == "data" else DONE
        step = events[-1]["step"]
        if kinds[-1] == "step":
            return STEPPING if step % STEPS_TO_VALIDATION else SAMPLING
        return EXPORTING if step == STEPS else STEPPING

    def events(self) -> list[dict[str, Any]]:
        """What this attempt has told so far."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as log:
            log.seek(self.told_before)
            return [json.loads(line) for line in log if line.endswith(b"}\n")]

    def has_touched(self, folder: Path, prefix: str) -> bool:
        """Whether this attempt made or changed something of that name in a folder."""
        try:
            with os.scandir(folder) as entries:
                return any(one.name.startswith(prefix) and one.stat().st_mtime_ns >= self.begun for one in entries)
        except FileNotFoundError:  # not made yet, or renamed meanwhile
            return False

    def kill_in(self, aim: str, moments: random.Random, lengths: Mapping[str, Sequence[float]]) -> bool:
        """Kill the process a random time after a phase began; False if it was done before."""
        passes = moments.randint(1, 2) if aim in OFTEN else 1
        for phase in self.phases():
            if phase == aim:
                passes -= 1
            if passes == 0:
                time.sleep(moments.uniform(0, median(lengths[aim])))
                self.process.send_signal(signal.SIGKILL)
                return self.process.wait() == -signal.SIGKILL and self.phase() != DONE
        return False


def pictures(folder: Path, size: tuple[int, int], seed: int) -> None:
    """Seven captioned pictures."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for number in range(7):
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}\nnumber {number}\n")


def outcome(run: Path) -> dict[str, object]:
    """Everything that must be equal: names of files, losses, tensors of the last checkpoint and of the export, pixels.

    A step that was taken more than once has all the losses it had, which must be one.
    """
    found: dict[str, object] = {f"file {file.relative_to(run)}": "" for file in run.rglob("*")}
    losses: defaultdict[int, set[float]] = defaultdict(set)
    for event in map(json.loads, (run / "events.jsonl").read_text().splitlines()):
        if event["event"] == "step":
            losses[event["step"]].add(event["loss"])
    found |= {f"loss {step}": values for step, values in losses.items()}
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    for file in (*last.rglob("*.safetensors"), *(run / "final").rglob("*.safetensors")):
        found |= {f"{file.relative_to(run)} {name}": value.numpy().tobytes() for name, value in load_file(file).items()}
    state = torch.load(last / "training" / "state.pt", weights_only=True)
    found |= {name: value.numpy().tobytes() for name, value in tensors_kept(state["optimizer"])}
    found |= {f"pixels {file.relative_to(run)}": Image.open(file).tobytes() for file in run.glob("validation/step-*/*.png")}
    return found


def uninterrupted(config: Path, cache: Path, lengths: defaultdict[str, list[float]]) -> dict[str, object]:
    """The outcome of a run that goes straight through; adds to the seconds that each phase takes."""
    attempt = Attempt(config, cache)
    began = [(phase, time.monotonic()) for phase in attempt.phases()]
    for (phase, since), (_, until) in pairwise(began):
        lengths[phase].append(until - since)
    return outcome(attempt.run)


def next_aim(moments: random.Random, hits: Counter[str]) -> str:
    """One of the phases that were hit least."""
    least = min(hits[phase] for phase in PHASES)
    return moments.choice([phase for phase in PHASES if hits[phase] == least])


def table(aimed: Counter[str], hits: Counter[str]) -> str:
    """Kills by phase, as aimed and as they fell."""
    rows = [f"{phase:<22}{aimed[phase]:>6}{hits[phase]:>6}" for phase in PHASES]
    return "\n".join([f"{'phase':<22}{'aimed':>6}{'fell':>6}", *rows, f"{'all':<22}{aimed.total():>6}{hits.total():>6}"])


def main() -> None:
    """Command line: kill, resume, compare, and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    aimed: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    lengths: defaultdict[str, list[float]] = defaultdict(list)
    expected: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        SanaFamily.tiny(home / "checkpoint").rename(home / "twin")
        pictures(home / "squares", (64, 80), 0)
        pictures(home / "bars", (96, 96), 1)

        def config(name: str, kind: str) -> Path:
            file = home / f"{name}.toml"
            file.write_text(CONFIG + KINDS[kind])
            return file

        for kind in KINDS:
            expected[kind] = uninterrupted(config(kind, kind), home / f"cache-{kind}", lengths)
        aim, runs, caches = next_aim(moments, hits), 0, 0
        while hits.total() < arguments.kills:
            kind = list(KINDS)[runs % len(KINDS)]
            runs += 1
            file = config(f"{kind}-{runs}", kind)
            while hits.total() < arguments.kills:
                caches += aim == CACHING  # in an empty cache; who comes after goes on with what is there
                attempt = Attempt(file, home / f"cache-{caches}")
                aimed[aim] += 1
                if not attempt.kill_in(aim, moments, lengths):
                    print(f"run {runs} was done before it was killed {aim}", flush=True)
                    break
                hits[attempt.phase()] += 1
                aim = next_aim(moments, hits)
            else:
                attempt = Attempt(file, home / f"cache-{caches}")
                for _ in attempt.phases():
                    pass
            found = outcome(attempt.run)
            odd = sorted(name for name in expected[kind].keys() | found.keys() if expected[kind].get(name) != found.get(name))
            if odd:
                raise SystemExit(f"run {runs} ({kind}) is not the straight one: {', '.join(odd[:5])} and {max(len(odd) - 5, 0)} more")
            print(f"{hits.total()} kills so far; run {runs} ({kind}) equals the straight one in {len(found)} values", flush=True)
    print(table(aimed, hits))
    spared = [phase for phase in PHASES if not hits[phase]]
    if spared:
        raise SystemExit(f"no kill fell while {', '.join(spared)}")
    print(f"{hits.total()} kills in {runs} runs; every run equals the one never interrupted")


if __name__ == "__main__":
    main()

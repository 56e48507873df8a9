"""Kill a run at random moments and check that what is resumed is the run that was never interrupted, bit for bit.

`python bench/kill.py [--kills 50] [--seed 0]`: a tiny twin is trained straight through once; then runs of the same config
are killed with SIGKILL after a random time, also while they cache, save or validate, and started again until they are
done. Losses, every tensor of the last checkpoint and the validation pictures must be equal.
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
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tunesmith_sana import SanaFamily

CONFIG = """
[run]
steps = 24
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
every = 6
prompts = { red = "a red square" }
resolutions = ["64x64"]
steps = 4
"""
LORA = "\n[plugins.lora]\nrank = 4\nalpha = 8\ndropout = 0.1\n"


def pictures(folder: Path, size: tuple[int, int], seed: int) -> None:
    """Seven captioned pictures."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for number in range(7):
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}\nnumber {number}\n")


def command(config: Path, cache: Path) -> list[str]:
    """`tune run` of a config with its own cache."""
    return [sys.executable, "-m", "tunesmith", "run", str(config), "--quiet", "--set", f"run.cache_dir='{cache}'"]


def outcome(run: Path) -> dict[str, object]:
    """Everything that must be equal: losses by step, tensors of the last checkpoint, pixels."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if line.endswith("}")]
    found: dict[str, object] = {f"loss {event['step']}": event["loss"] for event in events if event["event"] == "step"}
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    for file in last.rglob("*.safetensors"):
        found |= {f"{file.relative_to(last)} {name}": value.numpy().tobytes() for name, value in load_file(file).items()}
    state = torch.load(last / "training" / "state.pt", weights_only=True)
    for index, slots in state["optimizer"]["state"].items():
        found |= {f"optimizer {index} {name}": torch.as_tensor(value).numpy().tobytes() for name, value in slots.items()}
    found |= {str(file.relative_to(run)): Image.open(file).tobytes() for file in run.glob("validation/step-*/*.png")}
    return found


def main() -> None:
    """Command line: kill, resume, compare, and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        SanaFamily.tiny(home / "checkpoint").rename(home / "twin")
        pictures(home / "squares", (64, 80), 0)
        pictures(home / "bars", (96, 96), 1)
        kills = runs = 0
        phases: dict[str, int] = {}
        while kills < arguments.kills:
            kind = ("full", "lora")[runs % 2]
            straight, killed = home / f"{kind}-straight.toml", home / f"{kind}-killed-{runs}.toml"
            for config in (straight, killed):
                config.write_text(CONFIG + (LORA if kind == "lora" else ""))
            begun = time.monotonic()
            if not (home / "runs" / straight.stem / "final").exists():
                subprocess.run(command(straight, home / f"cache-{kind}"), cwd=home, env=environment, check=True, capture_output=True)
            length = max(time.monotonic() - begun, 6.0)
            while True:
                process = subprocess.Popen(command(killed, home / f"cache-{runs}"), cwd=home, env=environment, stdout=subprocess.DEVNULL)
                try:
                    process.wait(moments.uniform(0.35, 1.1) * length if kills < arguments.kills else None)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
                    log = home / "runs" / killed.stem / "events.jsonl"
                    events = log.read_text().splitlines() if log.exists() else []
                    last = json.loads(events[-1])["event"] if events and events[-1].endswith("}") else "before the run"
                    phases[last] = phases.get(last, 0) + 1
                    continue
                break
            if process.returncode:
                raise SystemExit(f"run {runs} ended with {process.returncode}")
            expected, found = outcome(home / "runs" / straight.stem), outcome(home / "runs" / killed.stem)
            odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            if odd:
                raise SystemExit(f"run {runs} ({kind}) is not the straight one: {', '.join(odd[:5])} and {max(len(odd) - 5, 0)} more")
            runs += 1
            print(f"{kills} kills so far; run {runs} ({kind}) equals the straight one in {len(expected)} values", flush=True)
        print(f"{kills} kills in {runs} runs, last event before the kill: {phases}; every run equals the one never interrupted")


if __name__ == "__main__":
    main()

"""What a run costs beyond its computation: steps, start, memory, the command line and the cache, each against the bare thing.

`python bench/overhead.py` measures everything in processes of their own and prints a table; `--write FILE` also puts it,
with the date and the load, between the markers of a Markdown file. `--only steps-tiny` and the like measure one line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measuring import MIB, VERDICTS, part_of, put, table

NUM_ENCODED, ENCODED_EDGE, ENCODED_BATCH = 32, 256, 4

part = partial(part_of, "parts")
"""A part in a process of its own."""


@dataclass(frozen=True)
class Line:
    """One line of the table: what was measured, by how much it may differ, and by how much it does."""

    what: str
    bare: str
    ours: str
    difference: str
    limit: str
    holds: bool | None


@dataclass(frozen=True)
class Place:
    """Where a measurement finds its files, and how long it may take."""

    folder: Path
    pairs: int
    block: int

    def checkpoint(self, size: str) -> Path:
        return self.folder / size

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.toml"


def median_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and the interval between two order statistics that cover it with 95 %; the whole range for fewer than six."""
    ordered, n = sorted(values), len(values)
    tail, cumulated, weight = 0, 0.0, 0.5**n
    while cumulated + weight <= 0.025:
        cumulated += weight
        tail += 1
        weight *= (n - tail + 1) / tail
    low = max(tail - 1, 0)
    return statistics.median(ordered), ordered[low], ordered[n - 1 - low]


def steps(place: Place, size: str, block: int, pairs: int, threads: int | None) -> dict[str, Any]:
    """Seconds per step of a run and of the bare loop, pair by pair: (wall, processor)."""
    part("warm", place.config(size))
    return part("steps", place.config(size), place.checkpoint(size), block, pairs, threads=threads)


def steps_tiny(place: Place) -> list[Line]:
    """Milliseconds that a run adds to a step of a tiny model; one thread computes, for two are no faster on it."""
    found = steps(place, "tiny", 2 * place.block, 2 * place.pairs, threads=1)
    lines = []
    for clock, (what, limit) in enumerate((("wall", "0.5 ms"), ("processor, all threads", ""))):
        run, bare = ([1e3 * times[clock] for times in found[kind]] for kind in ("run", "bare"))
        added, low, high = median_and_interval([ours - theirs for ours, theirs in zip(run, bare, strict=True)])
        title = f"step at 0.06 M parameters, {what}: median of {len(run)} pairs of {2 * place.block} steps"
        lines.append(
            Line(
                title,
                f"{statistics.median(bare):.2f} ms",
                f"{statistics.median(run):.2f} ms",
                f"+ {added:.2f} ms ({low:.2f} to {high:.2f})",
                limit,
                added <= 0.5 if limit else None,
            )
        )
    return lines


def steps_60m(place: Place) -> list[Line]:
    """How many times as long a run's step takes at 65 M parameters, torch on all cores."""
    found = steps(place, "60M", place.block, place.pairs, threads=None)
    lines = []
    for clock, (what, limit) in enumerate((("wall", "1.02x"), ("processor, all threads", ""))):
        run, bare = ([1e3 * times[clock] for times in found[kind]] for kind in ("run", "bare"))
        ratio, low, high = median_and_interval([ours / theirs for ours, theirs in zip(run, bare, strict=True)])
        title = f"step at 65 M parameters, {what}: median of {len(run)} pairs of {place.block} steps"
        times = f"{statistics.median(bare):.1f} ms", f"{statistics.median(run):.1f} ms"
        lines.append(Line(title, *times, f"{ratio:.3f}x ({low:.3f} to {high:.3f})", limit, ratio <= 1.02 if limit else None))
    return lines


def start(place: Place) -> list[Line]:
    """Seconds to the first step, the median of five processes."""
    lines = []
    for size, parameters in (("tiny", "0.06 M"), ("60M", "65 M")):
        part("warm", place.config(size))
        seconds = statistics.median(part("first_step", place.config(size))["seconds"] for _ in range(5))
        lines.append(Line(f"first step after imports, warm cache, {parameters}", "", f"{seconds:.2f} s", "", "2 s", seconds <= 2))
    return lines


def memory(place: Place) -> list[Line]:
    """Resident peaks, the median of three processes each."""
    lines = []
    for size, parameters in (("tiny", "0.06 M"), ("60M", "65 M")):
        config = place.config(f"{size}-short")
        part("memory_run", config)  # fills the cache
        runs = [part("memory_run", config) for _ in range(3)]
        bare = statistics.median(part("memory_bare", place.checkpoint(size), 10)["steps"] for _ in range(3))
        for key, what in (("steps", "training"), ("whole", "training and the last checkpoint")):
            ours = statistics.median(run[key] for run in runs)
            share = 100 * (ours / bare - 1)
            difference = f"{share:+.1f} %"
            lines.append(
                Line(
                    f"peak memory, {what}, {parameters}", f"{bare / MIB:.0f} MiB", f"{ours / MIB:.0f} MiB", difference, "+ 5 %", share <= 5
                )
            )
    return lines


def command_line(place: Place) -> list[Line]:
    """`tune --help` and the import of its library by turns, the median of ten each."""

    def seconds(command: Sequence[str]) -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    ours: list[float] = []
    bare: list[float] = []
    for _ in range(10):
        ours.append(seconds([sys.executable, "-m", "tunesmith", "--help"]))
        bare.append(seconds([sys.executable, "-c", "import typer"]))
    mine, theirs = statistics.median(ours), statistics.median(bare)
    ratio = mine / theirs
    return [
        Line(
            "`tune --help` against `import typer`",
            f"{theirs:.3f} s",
            f"{mine:.3f} s",
            f"{ratio:.2f}x",
            "0.4 s or 3x",
            mine <= 0.4 or ratio <= 3,
        )
    ]


def encoding(place: Place) -> list[Line]:
    """Pictures a second: filling the cache, and the autoencoder alone on pixels in memory; five of each by turns."""
    rates: list[tuple[float, float]] = []
    config, cache = place.config("encoder"), place.folder / "cache-encoder"
    for _ in range(5):
        for file in cache.glob("*"):
            file.unlink()
        whole = NUM_ENCODED / part("encoding", config)["whole"]
        alone = NUM_ENCODED / part("encoder_alone", place.checkpoint("encoder"), NUM_ENCODED, ENCODED_BATCH, ENCODED_EDGE)["whole"]
        rates.append((alone, whole))
    share, low, high = median_and_interval([whole / alone for alone, whole in rates])
    bare, ours = (statistics.median(rate) for rate in zip(*rates, strict=True))
    title = f"encoding pictures of {ENCODED_EDGE} pixels against the encoder alone"
    return [Line(title, f"{bare:.2f}/s", f"{ours:.2f}/s", f"{share:.2f}x ({low:.2f} to {high:.2f})", "", None)]


MEASUREMENTS: Mapping[str, Callable[[Place], list[Line]]] = {
    "steps-60M": steps_60m,
    "steps-tiny": steps_tiny,
    "start": start,
    "memory": memory,
    "help": command_line,
    "encoding": encoding,
}


def prepare(folder: Path, pairs: int, block: int) -> Place:
    """Make the checkpoints, pictures and configs of all measurements."""
    from workload import EDGE, NUM_PICTURES, SIZES, make_checkpoint, make_pictures, write_config

    pictures = make_pictures(folder / "pictures", NUM_PICTURES, EDGE)
    for size in SIZES:
        make_checkpoint(folder / size, size)
        write_config(folder / f"{size}.toml", folder / size, pictures, steps=10**6)
        write_config(folder / f"{size}-short.toml", folder / size, pictures, steps=10)
    large = make_pictures(folder / "large", NUM_ENCODED, ENCODED_EDGE)
    make_checkpoint(folder / "encoder", "tiny", large_encoder=True)
    write_config(folder / "encoder.toml", folder / "encoder", large, steps=1, batch=ENCODED_BATCH, edge=ENCODED_EDGE)
    return Place(folder, pairs, block)


def markdown(lines: Sequence[Line], load: Sequence[float]) -> str:
    """The table, with when and where it was measured."""
    rows = [[line.what, line.bare, line.ours, line.difference, line.limit, VERDICTS[line.holds]] for line in lines]
    return table(["what", "bare", "run", "difference", "limit", "holds"], rows, load)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="measure this alone; may be repeated")
    parser.add_argument("--pairs", type=int, default=10, help="pairs of blocks of steps")
    parser.add_argument("--block", type=int, default=50, help="steps in a block of the larger model; twice as many of the tiny one")
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file whose table is replaced")
    arguments = parser.parse_args()
    lines: list[Line] = []
    load: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        place = prepare(Path(folder), arguments.pairs, arguments.block)
        for name in arguments.only or MEASUREMENTS:
            load.append(os.getloadavg()[0])
            for line in MEASUREMENTS[name](place):
                lines.append(line)
                print(f"{line.what}: {line.bare} | {line.ours} | {line.difference} | limit {line.limit or 'none'}", flush=True)
    made = markdown(lines, load)
    print(made)
    if arguments.write:
        put(made, "measured", arguments.write)


if __name__ == "__main__":
    main()

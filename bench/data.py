"""What data costs: filling the cache, knowing a large dataset again, reading windows of films, and reading ahead of the model.

`python bench/data.py` measures everything in processes of their own and prints a table; `--write FILE` also puts it, with the
date and the load, between the markers of a Markdown file. `--only film` and the like measure one part; `--million` adds a
dataset of a million pictures, which takes some minutes and two million links.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measuring import MIB, VERDICTS, part_of, put, table

NUM_ENCODED, ENCODED_EDGE, ENCODED_BATCH, ENCODER_SECONDS = 128, 512, 4, 0.2
"""Pictures that are encoded, their edge once they are resized, how many at a time, and what a slow encoder takes for one."""
NUM_CACHED, CACHED_EDGE = 512, 256
PER_FOLDER, LINKED = 1000, 40
"""Files of a large dataset in one folder; files that all its links lead to, for a file has at most 65,000 links."""

part = partial(part_of, "data_parts", threads=1)
"""A part in a process of its own, where torch computes with one thread."""


@dataclass(frozen=True)
class Line:
    """One line of the table: what was measured, against what, what must hold, and whether it does."""

    what: str
    found: str
    wanted: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Place:
    """Where a measurement makes its files, and how often it is repeated."""

    folder: Path
    rounds: int


def caching(place: Place) -> list[Line]:
    """Pictures a second: filling an empty cache from files, against the encoder alone on pixels in memory, by turns."""
    from workload import make_checkpoint, write_config

    checkpoint = make_checkpoint(place.folder / "checkpoint", "tiny")
    config = write_config(place.folder / "caching.toml", checkpoint, photographs(place), steps=1, batch=ENCODED_BATCH, edge=ENCODED_EDGE)
    with config.open("a") as out:
        out.write('captions = "instance"\ninstance_prompt = "a picture"\n')
    amounts = {"waits": ENCODER_SECONDS, "computes": part("calibrate", ENCODER_SECONDS)["count"], "tiny": 0}
    says = {
        "waits": f"an encoder that is waited for, as one on a GPU is, {ENCODER_SECONDS:g} s a picture",
        "computes": f"an encoder that computes for {ENCODER_SECONDS:g} s a picture in one thread",
        "tiny": "the tiny Sana's encoder",
    }
    lines = []
    for how, amount in amounts.items():
        rates: list[tuple[float, float]] = []
        for _ in range(place.rounds):
            for file in (place.folder / "cache-caching").rglob("*"):
                if file.is_file():
                    file.unlink()
            filled = NUM_ENCODED / part("fill", config, how, amount)["whole"]
            rates.append(
                (
                    filled,
                    NUM_ENCODED / part("alone", checkpoint, NUM_ENCODED, ENCODED_BATCH, ENCODED_EDGE, how, amount)["whole"],
                )
            )
        shares = [filled / alone for filled, alone in rates]
        share = statistics.median(shares)
        filled, alone = (statistics.median(rate) for rate in zip(*rates, strict=True))
        found = f"{filled:.2f}/s of {alone:.2f}/s: {share:.3f} ({min(shares):.3f} to {max(shares):.3f})"
        slow = how != "tiny"
        lines.append(Line(f"caching pictures, {says[how]}", found, "0.95" if slow else "", share >= 0.95 if slow else None))
    return lines


def photographs(place: Place) -> Path:
    """JPEG files of 1536x1024 pixels, as different from each other as their content addresses need."""
    import numpy as np
    from PIL import Image

    folder = place.folder / "photographs"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(NUM_ENCODED):
        coarse = Image.fromarray(generator.integers(0, 256, (32, 48, 3), dtype=np.uint8))
        coarse.resize((1536, 1024), Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg", quality=92)
    return folder


def indexing(place: Place) -> list[Line]:
    """A hundred thousand pictures, each with a caption file of its own."""
    first, again = starts(place, "hundred-thousand", 100_000, own_captions=True)
    rates = [one["samples"] / one["known"] for one in again]
    rate, per_cpu = statistics.median(rates), statistics.median(one["samples"] / one["computed"] for one in again)
    found = f"{rate:,.0f} pictures/s ({min(rates):,.0f} to {max(rates):,.0f}); {per_cpu:,.0f} a second of processor time"
    return [
        Line("first start, 100,000 pictures with captions in text files", f"{first['samples'] / first['known']:,.0f} pictures/s"),
        Line("second start, the same, nothing changed", found, "20,000/s", rate >= 20_000),
    ]


def million(place: Place) -> list[Line]:
    """A million pictures with caption files, all of them hard links to a few."""
    first, again = starts(place, "million", 1_000_000, own_captions=False)
    seconds, memory = statistics.median(one["whole"] for one in again), max(one["peak"] for one in again) / MIB
    computed = statistics.median(one["computed"] for one in again)
    start = f"{seconds:.1f} s, of the process from its imports to the first batch drawn; {computed:.1f} s of processor time after imports"
    peak = f"{memory:,.0f} MiB, of which {again[0]['before'] / MIB:,.0f} before the dataset is looked at"
    return [
        Line("first start, 1,000,000 pictures with captions", f"{first['whole']:.0f} s, {first['peak'] / MIB:,.0f} MiB"),
        Line("second start, the same", start, "60 s", seconds <= 60),
        Line("peak memory of the second start", peak, "2048 MiB", memory <= 2048),
    ]


def starts(place: Place, name: str, count: int, *, own_captions: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first start with a dataset, and those that come after it; `whole` is the process from beginning to end."""
    from workload import make_checkpoint

    checkpoint = make_checkpoint(place.folder / f"{name}-checkpoint", "tiny")
    folder = make_links(place.folder / name, count, own_captions)

    def start() -> dict[str, Any]:
        began = time.perf_counter()
        found = part("start", folder, place.folder / f"{name}.sqlite", checkpoint)
        if found["samples"] != count:
            raise SystemExit(f"{found['samples']} of {count} pictures were found")
        return {**found, "whole": time.perf_counter() - began}

    return start(), [start() for _ in range(place.rounds)]


def make_links(folder: Path, count: int, own_captions: bool) -> Path:
    """Small pictures, hard links to a few, with captions: files of their own, or links too."""
    from workload import make_pictures

    few = make_pictures(folder.with_name(f"{folder.name}-few"), LINKED, 64)
    for number in range(count):
        home = folder / f"{number // PER_FOLDER:04}"
        if number % PER_FOLDER == 0:
            home.mkdir(parents=True)
        stem, which = home / f"{number % PER_FOLDER:04}", few / f"{number % LINKED:03}"
        os.link(f"{which}.png", f"{stem}.png")
        if own_captions:
            Path(f"{stem}.txt").write_text(f"picture number {number}")
        else:
            os.link(f"{which}.txt", f"{stem}.txt")
    return folder


def film(place: Place) -> list[Line]:
    """A window of 16 frames from the middle of ten minutes, as a dataset reads it and by PyAV alone."""
    file = place.folder / "film.mp4"
    part("make_film", file, 10)
    found = part("film", file, 40)
    ratios = [ours / alone for ours, alone in zip(found["ours"], found["alone"], strict=True)]
    ours, alone = (1e3 * statistics.median(found[way]) for way in ("ours", "alone"))
    ratio = ours / alone
    told = f"{ours:.0f} ms, PyAV alone {alone:.0f} ms: {ratio:.2f}x (pairs: median {statistics.median(ratios):.2f}x)"
    same = "the same pixels" if found["apart"] == 0 else f"pixels differ by up to {found['apart']:g}"
    return [Line("16 frames from the middle of 10 minutes of 640x360", f"{told}; {same}", "1.5x", ratio <= 1.5)]


def reading(place: Place) -> list[Line]:
    """What the loop of a small model waits for batches of cached latents on disk."""
    from workload import make_checkpoint, make_pictures, write_config

    pictures = make_pictures(place.folder / "cached", NUM_CACHED, 64)
    checkpoint = make_checkpoint(place.folder / "reading-checkpoint", "tiny")
    config = write_config(place.folder / "reading.toml", checkpoint, pictures, steps=10**6, batch=4, edge=CACHED_EDGE)
    part("fill", config, "tiny", 0)
    found = part("reading", config, place.folder / "cache-reading", 400)
    waits = sorted(1e3 * wait for wait in found["waits"])
    step = 1e3 * found["whole"] / len(waits)
    share = sum(waits) / (1e3 * found["whole"])
    late = f"{found['empty']} of {len(waits)} steps found no batch ready, the longest wait was {waits[-1]:.2f} ms"
    told = f"{100 * share:.3f} % of the time, {statistics.median(waits):.4f} ms of a step of {step:.0f} ms in the median; {late}"
    read = f"{found['read'] / 2**20:.1f} MiB came from the disk"
    return [Line("waiting for batches of cached latents on disk", f"{told}; {read}", "never", found["empty"] == 0)]


MEASUREMENTS: Mapping[str, Callable[[Place], list[Line]]] = {
    "film": film,
    "reading": reading,
    "indexing": indexing,
    "caching": caching,
    "million": million,
}


def markdown(lines: Sequence[Line], load: Sequence[float]) -> str:
    """The table, with when and where it was measured."""
    return table(["what", "found", "wanted", "holds"], [[line.what, line.found, line.wanted, VERDICTS[line.holds]] for line in lines], load)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="measure this alone; may be repeated")
    parser.add_argument("--million", action="store_true", help="also start with a million pictures")
    parser.add_argument("--rounds", type=int, default=3, help="how often starts and fillings are repeated")
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file whose table is replaced")
    arguments = parser.parse_args()
    names = arguments.only or [name for name in MEASUREMENTS if name != "million" or arguments.million]
    lines: list[Line] = []
    load: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            load.append(os.getloadavg()[0])
            place = Place(Path(folder) / name, arguments.rounds)
            place.folder.mkdir()
            for line in MEASUREMENTS[name](place):
                lines.append(line)
                print(f"{line.what}: {line.found} | wanted {line.wanted or 'nothing'}", flush=True)
    made = markdown(lines, load)
    print(made)
    if arguments.write:
        put(made, "data", arguments.write)


if __name__ == "__main__":
    main()

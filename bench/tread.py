"""What TREAD saves of a step's time, by the share of tokens that bypass the inner blocks, beside what is saved of its operations.

Counted is processor time with one thread, which other work on the machine changes little. `python bench/tread.py` measures
each family at random weights and prints a table; `--write FILE` also puts each table, with the date and the load, between the
markers of a Markdown file. `--only sana` and the like measure one family.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from families import make_batch, make_checkpoint, make_run, make_step, sides
from measuring import VERDICTS, put, table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tunesmith import Batch, Part, Run

RATIOS = (0.0, 0.25, 0.5, 0.75)
DEPTH, START, END = 8, 2, -2
WIDTH = {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": DEPTH}
CROSS = {"num_cross_attention_heads": 4, "cross_attention_head_dim": 64, "cross_attention_dim": 256}
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "sana": {**WIDTH, **CROSS, "mlp_ratio": 2.5},
    "sana_video": {**WIDTH, **CROSS, "mlp_ratio": 3.0},
    "wan_s2v": {**WIDTH, "ffn_dim": 1024, "audio_inject_layers": [0, 3, 6]},
}
"""Changes to the transformer of each family's tiny twin: 256 wide, and the real checkpoints' shape of a block."""
EDGES = {"image": {1024: 32, 4096: 64}, "video": {1024: 8, 4096: 16}}
"""Tokens along an edge of pictures and of clips, by how many tokens these have at least."""
FRAMES = 16
"""Latent frames that clips have at least."""
LIMIT = 0.85
"""The share of the ideal that is wanted in fp32 at the most tokens."""


@dataclass(frozen=True)
class Measured:
    """One line: processor seconds of a step, what is saved, and what the count of operations gives."""

    tokens: int
    dtype: str
    ratio: float
    seconds: float
    faster: float
    ideal: float


def routes(ratio: float) -> str:
    """The table of a route around the first and the last two blocks."""
    return f"[[plugins.tread.routes]]\nratio = {ratio}\nstart = {START}\nend = {END}\n"


def batch_of(run: Run, tokens: int, share: float = 1.0) -> Batch:
    """A sample of so many tokens, or a share of them."""
    return make_batch(run, *sides(run.family, EDGES[run.family.modality.value][tokens], FRAMES, share))


def one_step(run: Run, batch: Batch, dtype: torch.dtype) -> float:
    """Processor seconds of forward and backward."""
    run.model.denoiser.zero_grad(set_to_none=True)
    run.current = make_step(batch)
    began = time.process_time()
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        total = run.hooks.compute_loss(run, run.current).total
    total.backward()
    seconds = time.process_time() - began
    run.current = None
    return seconds


@contextmanager
def counting(run: Run, counted: Counter[nn.Module | None]) -> Iterator[None]:
    """Count the operations of a forward by the trunk's modules and convolutions, and under None all of them."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attended(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    modules = [module for entry in run.model.trunk() for module in (entry.module, *(one.module for one in entry.convolutions))]
    with FlopCounterMode(display=False, custom_mapping={attention: attended}) as counter:

        def add(sign: int) -> Callable[..., None]:
            return lambda module, *_: counted.update({module: sign * counter.get_total_flops()})

        handles = [
            handle for module in modules for handle in (module.register_forward_pre_hook(add(-1)), module.register_forward_hook(add(1)))
        ]
        yield
        for handle in handles:
            handle.remove()
        counted[None] = counter.get_total_flops()


def operations(run: Run, tokens: int, share: float) -> Counter[nn.Module | None]:
    """What a forward without routes takes of a sample that has this share of the tokens."""
    step = make_step(batch_of(run, tokens, share))
    counted: Counter[nn.Module | None] = Counter()
    with torch.no_grad(), counting(run, counted):
        run.model.predict(step.noisy, step.sigma, step.batch)
    return counted


def ideal(run: Run, tokens: int, ratio: float) -> float:
    """How many times fewer operations are left: inner blocks as those of a smaller sample, but their convolutions on the full grid.

    Backward takes two operations for each one of forward, so the ratio is that of a whole step.
    """
    whole, part = operations(run, tokens, 1.0), operations(run, tokens, 1 - ratio)
    trunk = run.model.trunk()
    blocks = [position for position, entry in enumerate(trunk) if entry.is_block]
    left = whole[None]
    for entry in trunk[blocks[START] : blocks[END] + 1]:
        left -= whole[entry.module] - part[entry.module]
        left += sum(whole[one.module] - part[one.module] for one in entry.convolutions)
    return whole[None] / left


def measure(family: str, checkpoint: Path, tokens: int, rounds: int) -> list[Measured]:
    """All ratios in fp32 and bf16, by turns; what is saved is the median over rounds of the ratio within each."""
    runs = {ratio: make_run(family, checkpoint, routes(ratio)) for ratio in RATIOS}
    for run in runs.values():
        run.model = run.load(Part.DENOISER)
        run.model.denoiser.train().requires_grad_(True)
    plain = runs[0.0]
    batch = batch_of(plain, tokens)
    num_tokens = plain.model.token_grid(batch.tensor("latents")).tokens
    ideals = {ratio: ideal(plain, tokens, ratio) if ratio else 1.0 for ratio in RATIOS}
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        times: dict[float, list[float]] = {ratio: [] for ratio in RATIOS}
        for run in runs.values():
            one_step(run, batch, dtype)  # the first touch does not count
        for _ in range(rounds):
            for ratio, run in runs.items():
                times[ratio].append(one_step(run, batch, dtype))
                gc.collect()
        for ratio in RATIOS:
            faster = statistics.median(whole / part for whole, part in zip(times[0.0], times[ratio], strict=True))
            found.append(
                Measured(num_tokens, str(dtype).removeprefix("torch."), ratio, statistics.median(times[ratio]), faster, ideals[ratio])
            )
    return found


def markdown(found: Sequence[Measured], load: Sequence[float]) -> str:
    """The table of one family."""
    rows = []
    for line in found:
        share = line.faster / line.ideal
        wanted = line.ratio > 0 and line.dtype == "float32" and line.tokens >= max(EDGES["image"])
        holds = VERDICTS[share >= LIMIT if wanted else None]
        times = f"{line.seconds:.2f} s", f"{line.faster:.2f}x", f"{line.ideal:.2f}x", f"{share:.2f}"
        rows.append([str(line.tokens), line.dtype, f"{line.ratio:.0%}", *times, f"{LIMIT}" if wanted else "", holds])
    return table(["tokens", "precision", "bypass", "step", "faster", "fewer operations", "share", "limit", "holds"], rows, load)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="measure this family alone; may be repeated")
    parser.add_argument("--tokens", type=int, choices=EDGES["image"], action="append", help="of so many tokens alone; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="how often each ratio is measured")
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file whose tables are replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for family in arguments.only or NETWORKS:
        load: list[float] = []
        found: list[Measured] = []
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = make_checkpoint(family, Path(folder) / family, NETWORKS[family])
            for tokens in arguments.tokens or EDGES["image"]:
                load.append(os.getloadavg()[0])
                found += measure(family, checkpoint, tokens, arguments.rounds)
        made = markdown(found, load)
        print(f"{family}\n{made}\n", flush=True)
        if arguments.write:
            put(made, f"tread {family}", arguments.write)


if __name__ == "__main__":
    main()

"""One measurement in a process of its own: `parts.py NAME ARGUMENT ...` prints its result as a line of JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from workload import bare_loop

from tunesmith import session
from tunesmith.config import load_config
from tunesmith.data.ahead import Ahead
from tunesmith.encoding.fill import fill
from tunesmith.progress import Progress
from tunesmith.trainer import Trainer

LEAD_IN = 3
"""Steps before each block that are not counted: the batches that were read ahead meanwhile."""


def carry_out(config: str, trainer: type[Trainer] = Trainer) -> None:
    """A whole run as `tune run --quiet --resume never` does it, with a trainer of our own in place of the core's."""
    checked = load_config(Path(config), ())
    with Progress("quiet", output=sys.stderr) as progress, mock.patch.object(session, "Trainer", trainer):
        session.run(checked, "never", progress)


def clocks() -> tuple[float, float]:
    """Seconds on the wall and seconds of processor time of this process, all threads."""
    return time.perf_counter(), time.process_time()


def timed(step: Callable[[], None], count: int) -> tuple[float, float]:
    """Seconds of wall and processor per step."""
    for _ in range(LEAD_IN):
        step()
    wall, processor = clocks()
    for _ in range(count):
        step()
    wall_now, processor_now = clocks()
    return (wall_now - wall) / count, (processor_now - processor) / count


def steps(config: str, checkpoint: str, block: str, pairs: str) -> dict[str, Any]:
    """Blocks of a run's steps and of the bare loop's by turns; which comes first alternates too."""
    bare = bare_loop(Path(checkpoint))
    found: dict[str, list[tuple[float, float]]] = {"run": [], "bare": []}

    class Alternating(Trainer):
        def train(self) -> None:
            run = self.run
            with self.ahead() as steps, self.progress.training(run.total_steps, 0):
                kinds: dict[str, Callable[[], None]] = {"run": lambda: self.step_of_run(steps), "bare": bare}
                for kind in kinds.values():
                    timed(kind, 2 * LEAD_IN)
                for pair in range(int(pairs)):
                    for name in sorted(kinds, reverse=bool(pair % 2)):
                        found[name].append(timed(kinds[name], int(block)))

        def step_of_run(self, steps: Ahead[Any, Any]) -> None:
            self.one_step(steps)
            self.milestones()

    carry_out(config, Alternating)
    return {**found, "threads": torch.get_num_threads()}


def first_step(config: str) -> dict[str, Any]:
    """Seconds from the end of imports, which reading the config completes, to the end of the first step."""
    load_config(Path(config), ())
    began = time.perf_counter()
    seconds: list[float] = []

    class First(Trainer):
        def one_step(self, steps: Ahead[Any, Any]) -> None:
            super().one_step(steps)
            seconds.append(time.perf_counter() - began)
            self.run.stop("measured")

    carry_out(config, First)
    return {"seconds": seconds[0]}


def peak() -> int:
    """This process's resident peak in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_run(config: str) -> dict[str, Any]:
    """Peak memory of a run's steps, and of the whole run with its checkpoint."""
    at_steps: list[int] = []

    class Watched(Trainer):
        def train(self) -> None:
            super().train()
            at_steps.append(peak())

    carry_out(config, Watched)
    return {"steps": at_steps[0], "whole": peak()}


def memory_bare(checkpoint: str, count: str) -> dict[str, Any]:
    """Peak memory of the bare loop in a process that has imported the same libraries."""
    import accelerate.utils  # noqa: F401
    import transformers.models.gemma2  # noqa: F401

    step = bare_loop(Path(checkpoint))
    for _ in range(int(count)):
        step()
    return {"steps": peak()}


def warm(config: str) -> dict[str, Any]:
    """Fill the cache and take one step."""
    return first_step(config)


def encoding(config: str) -> dict[str, Any]:
    """Seconds to fill the cache, and of those the seconds inside the autoencoder's own call."""
    from diffusers import AutoencoderDC

    inside: list[float] = []
    whole: list[float] = []
    encode_pixels = AutoencoderDC.encode

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = encode_pixels(self, *args, **kwargs)
        inside.append(time.perf_counter() - began)
        return result

    def filled(*args: Any) -> None:
        began = time.perf_counter()
        fill(*args)
        whole.append(time.perf_counter() - began)

    with mock.patch.object(AutoencoderDC, "encode", watched), mock.patch.object(session, "fill", filled):
        first_step(config)
    return {"whole": whole[0], "inside": sum(inside), "batches": len(inside)}


def encoder_alone(checkpoint: str, count: str, batch: str, edge: str) -> dict[str, Any]:
    """Seconds for as many pictures through the autoencoder alone, pixels in memory."""
    from diffusers import AutoencoderDC

    vae: Any = AutoencoderDC.from_pretrained(Path(checkpoint) / "vae").eval()
    pixels = torch.rand(int(batch), 3, int(edge), int(edge)) * 2 - 1
    with torch.no_grad():
        began = time.perf_counter()
        for _ in range(int(count) // int(batch)):
            vae.encode(pixels, return_dict=False)
    return {"whole": time.perf_counter() - began}


PARTS = {part.__name__: part for part in (steps, first_step, memory_run, memory_bare, warm, encoding, encoder_alone)}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])))

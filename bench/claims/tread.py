"""Does TREAD reach the untreated loss in less time at long sequences? A small Wan S2V learns clips of moving spots.

Two networks with the same first weights see the same clips, noise and levels in the same order: one with all tokens in all
blocks, one with half of the tokens bypassing all but the first and the last block. Both train for the same processor time,
side by side, each with one thread; the loss is that of held-out clips, with every token, at fixed levels of noise.

`python bench/claims/tread.py` writes docs/claims/tread.png and docs/claims/tread.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch
from common import CLAIMS, Series, plot, rows, write_fragment
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))
from families import make_batch, make_checkpoint, make_run, make_step, sides

from tunesmith import Batch, Part, Run

FAMILY = "wan_s2v"
NETWORK = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 8, "ffn_dim": 192, "audio_inject_layers": [0, 4]}
ALONG, FRAMES = 16, 8
"""Tokens along an edge and latent frames of the clips: 2,048 tokens."""
RATIO, START, END = 0.5, 1, -2
ARMS = {"all tokens": "", "half of them bypass": f"[[plugins.tread.routes]]\nratio = {RATIO}\nstart = {START}\nend = {END}\n"}
NUM_CLIPS, NUM_HELD_OUT, NUM_SPOTS = 64, 6, 3
SIGMAS = (0.3, 0.5, 0.7, 0.9)
LEARNING_RATE, WARM_UP = 2e-3, 20
SECONDS, EVERY = 90.0, 6.0
"""Processor seconds of training, and between measurements of the loss."""


def spots(seed: int, shape: torch.Size) -> Tensor:
    """Latents [1, C, F, H, W] of soft spots that move over a plain ground, of values around 1."""
    generator = torch.Generator().manual_seed(seed)
    _, channels, frames, height, width = shape
    row, column = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    latents = torch.randn((1, channels, 1, 1, 1), generator=generator).expand(shape).clone() * 0.5
    for _ in range(NUM_SPOTS):
        start, end = torch.rand((2, 2), generator=generator)
        size, colour = 0.08 + 0.12 * torch.rand((), generator=generator), torch.randn((channels, 1, 1, 1), generator=generator)
        way = torch.linspace(0, 1, frames)[:, None, None]
        distance = (row - start[0] - way * (end - start)[0]).square() + (column - start[1] - way * (end - start)[1]).square()
        latents += 1.5 * colour * torch.exp(-distance / (2 * size.square()))  # [C, F, H, W]
    return latents


def clip(template: Batch, seed: int) -> Batch:
    """The batch with other latents."""
    return Batch(template.sources, template.captions, {}, {**template.fields, "latents": spots(seed, template.tensor("latents").shape)})


def held_out_loss(run: Run, batches: list[Batch]) -> float:
    """The mean squared error over held-out clips, each at one of the levels, with every token."""
    losses = []
    with torch.no_grad():
        for number, batch in enumerate(batches):
            step = make_step(batch, 10**6 + number, SIGMAS[number % len(SIGMAS)])
            step.mode, run.current = "eval", step
            losses.append(run.hooks.compute_loss(run, step).total.item())
            run.current = None
    return sum(losses) / len(losses)


def learn(arm: str, checkpoint: Path) -> dict[str, Any]:
    """Train an arm for the processor time there is: its seconds and losses when measured, and how many steps it made."""
    torch.set_num_threads(1)
    run = make_run(FAMILY, checkpoint, ARMS[arm])
    template = make_batch(run, *sides(run.family, ALONG, FRAMES))
    run.model = run.load(Part.DENOISER)
    parameters = list(run.model.denoiser.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    held_out = [clip(template, 10**6 + number) for number in range(NUM_HELD_OUT)]
    seconds, spent, losses = [0.0], 0.0, [held_out_loss(run, held_out)]
    for position in count():
        began = time.process_time()
        generator = torch.Generator().manual_seed(position)
        sigma = torch.rand((), generator=generator).item()
        run.current = make_step(clip(template, position % NUM_CLIPS), position, sigma)
        run.hooks.compute_loss(run, run.current).total.backward()
        run.current = None
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (position + 1) / WARM_UP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent += time.process_time() - began
        if spent >= seconds[-1] + EVERY:
            seconds.append(spent)
            losses.append(held_out_loss(run, held_out))
        if spent >= SECONDS:
            tokens = run.model.token_grid(template.tensor("latents")).tokens
            return {
                "seconds": seconds,
                "losses": losses,
                "steps": position + 1,
                "spent": spent,
                "tokens": tokens,
                "whole": time.process_time(),
            }
    raise AssertionError("the positions never end")


def reached(arm: dict[str, Any], loss: float) -> float | None:
    """The seconds after which an arm's loss stays at or below a loss, or None."""
    above = [second for second, value in zip(arm["seconds"], arm["losses"], strict=True) if value > loss]
    later = [second for second in arm["seconds"] if not above or second > above[-1]]
    return later[0] if later else None


def report(arms: dict[str, dict[str, Any]]) -> str:
    """The table, and what it says."""
    plain, routed = arms.values()
    ends = {name: sum(arm["losses"][-3:]) / 3 for name, arm in arms.items()}
    lines = [[name, str(arm["steps"]), f"{arm['spent'] / arm['steps']:.3f} s", f"{ends[name]:.4f}"] for name, arm in arms.items()]
    aim = f"The loss that training with all tokens ends with, {ends['all tokens']:.4f}, is"
    when = reached(routed, ends["all tokens"])
    if when:
        told = f"kept after {when:.0f} s of {plain['spent']:.0f} s where half of them bypass: {plain['spent'] / when:.2f} times as fast."
    else:
        told = (
            "not reached in the same time where half of them bypass: a step takes less time, but teaches less, and the claim does not show."
        )
    limits = "This is one seed and the beginning of training: it says nothing of where the losses end."
    return f"{rows(['tokens', 'steps', 'a step', 'loss, mean of the last three'], lines)}\n\n{aim} {told}\n\n{limits}"


def main() -> None:
    """Train both arms side by side, draw and tell."""
    if len(sys.argv) > 1:
        print(json.dumps(learn(sys.argv[1], Path(sys.argv[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for number, arm in enumerate(ARMS):
            checkpoint = make_checkpoint(FAMILY, Path(folder) / str(number) / FAMILY, NETWORK)
            running[arm] = subprocess.Popen([sys.executable, __file__, arm, str(checkpoint)], stdout=subprocess.PIPE, text=True)
        arms = {arm: json.loads(process.communicate()[0].splitlines()[-1]) for arm, process in running.items()}
    series = [Series(name, arm["seconds"], arm["losses"]) for name, arm in arms.items()]
    tokens = next(iter(arms.values()))["tokens"]
    plot(
        CLAIMS / "tread.png",
        f"Held-out loss, all tokens seen ({tokens} tokens)",
        "processor seconds of training",
        "loss",
        series,
        logarithmic=True,
    )
    seconds = time.process_time() + sum(arm["whole"] for arm in arms.values())
    sections = {"": f"{(__doc__ or '').split('`python')[0].strip()}", "Numbers": report(arms)}
    print(write_fragment("tread", "TREAD: the untreated loss in less time", sections, seconds).read_text())


if __name__ == "__main__":
    main()

"""Does a masked loss leave the background as it was? A small trained Sana learns an object that is always seen in one room.

Runs learn the object from the same pictures, captioned "a COLOUR ring": without masks, with a little `background`, with
masks, and with masks beside pictures of what the model knows, whose target is its own prediction. Measured is how far the
model has moved from where it started: on held-out pictures inside and outside of their masks, and at the edges of pictures
that it makes.

`python bench/claims/masked.py` writes docs/claims/masked.png and docs/claims/masked.md.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CLAIMS, QUICKSTART, Series, plot, rows, train, write_fragment
from diffusers import SanaPipeline
from PIL import Image, ImageDraw
from torch import Tensor

sys.path.insert(0, str(QUICKSTART))
from pretrain.shapes import BACKGROUNDS, COLOURS, NEW_SHAPE, SIZE, Scene, disc, placed

STEPS, EVERY, SEEDS = 200, 50, (0, 1)
NUM_PICTURES, SIGMAS = 3 * len(COLOURS), (0.3, 0.6, 0.9)
WALL, FLOOR, CORE = (60, 140, 150), (130, 85, 50), (15, 15, 15)
"""The room behind every picture of the object, and the object's middle."""
FRAME = 4
"""Pixels along the edges of a generated picture that are background in every one."""
KEPT = f"[[datasets]]\npath = {str(QUICKSTART / 'kept')!r}\nresolution = {SIZE}\nis_regularisation = true\n"
ARMS = {
    "no masks": "",
    "masks, background = 0.1": "[plugins.masked]\nbackground = 0.1\n",
    "masks": "[plugins.masked]\n",
    "masks, and what it knows": "[plugins.masked]\n" + KEPT,
}
"""What the runs say beside what they have in common."""

TITLE = "Masked loss: the background of what is learnt"
RESULT = """\
Means of two seeds after the last step. Change: root mean square of the difference to the untrained model's prediction, relative to
the size of that prediction, over latents wholly inside or wholly outside of the mask. Error: mean squared distance of the predicted
velocity to the true one on the same held-out pictures, which show the room too; outside it says how well the room has been learnt,
which is what masks are to prevent; the untrained model, which has never seen a room, errs most there, and part of what moves is that.
Edges: root mean square difference of the outermost four pixels, in steps of 255, between pictures
made of the same prompts and noise ("a red ring on a white background") before and after training."""
SETTING = f"""\
The quickstart's Sana, which has painted plain backgrounds only, learns with a LoRA of rank 16, at a rate of 5e-4 and in {STEPS} steps
of 8 pictures, a ring with a black middle from {NUM_PICTURES} pictures of 64 x 64 (8 x 8 latents) in one and the same room, of which
the captions say nothing. The mask is the ring with its middle. {NUM_PICTURES} further pictures of the same kind are asked about at
sigma {", ".join(map(str, SIGMAS))}. With `is_regularisation` every other batch is of the quickstart's `kept` pictures, so that the
object is seen half as often. One small model and one object: how much the background moves depends on the rate, the number of steps,
and what of the model is trained."""
Numbers = dict[str, float]


def photograph(scene: Scene) -> Image.Image:
    """The object in the room."""
    side = 4 * SIZE
    picture = Image.new("RGB", (side, side), WALL)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, round(0.6 * side), side, side), fill=FLOOR)
    pen.ellipse(disc(scene, side), fill=COLOURS[scene.colour])
    pen.ellipse(disc(scene, side, 0.5), fill=CORE)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def mask_of(scene: Scene) -> Image.Image:
    """White where the object is."""
    side = 4 * SIZE
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse(disc(scene, side), fill=255)
    return mask.resize((SIZE, SIZE), Image.Resampling.BOX)


def scenes(purpose: str) -> list[Scene]:
    """The object in every colour, three times, each somewhere else."""
    return [placed(NEW_SHAPE, colour, "", random.Random(f"{purpose}/{colour}/{copy}")) for colour in COLOURS for copy in range(3)]


def caption(scene: Scene) -> str:
    """What the pictures are captioned with: nothing of the room."""
    return f"{'an' if scene.colour[0] in 'aeiou' else 'a'} {scene.colour} {scene.shape}"


def write_data(folder: Path) -> None:
    """The pictures that are trained on, and their masks."""
    for name in ("pictures", "masks"):
        (folder / name).mkdir(parents=True)
    for number, scene in enumerate(scenes("train")):
        photograph(scene).save(folder / "pictures" / f"{number}.png")
        mask_of(scene).save(folder / "masks" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text(caption(scene) + "\n")


def config(extra: str, seed: int) -> str:
    """A run on the pictures."""
    return f"""
[run]
steps = {STEPS}
batch_size = 8
seed = {seed}
precision = "no"
device = "cpu"

[model]
family = "sana"
path = {str(QUICKSTART / "checkpoint")!r}
complex_human_instruction = false

[optimizer]
lr = 5e-4
schedule = "cosine"
warmup = 20

[[datasets]]
name = "object"
path = "pictures"
resolution = {SIZE}

[[datasets]]
kind = "mask"
of = "object"
path = "masks"

[checkpoints]
every = {EVERY}

[plugins.lora]
rank = 16

{extra}
"""


@dataclass(frozen=True)
class Questions:
    """What a model is asked: velocities of noisy held-out pictures, and pictures of prompts, all with fixed noise."""

    noisy: Tensor
    """[N, C, h, w], each held-out picture at every sigma."""
    sigma: Tensor
    target: Tensor
    texts: tuple[Tensor, Tensor]
    """Embeddings and masks of the captions, [N, L, D] and [N, L]."""
    mask: Tensor
    """How much of each latent the mask covers, [N, 1, h, w]."""
    prompts: tuple[Tensor, Tensor]
    no_prompt: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Answers:
    """What a model predicts, and the frames of the pictures that it makes, [M, pixels, 3]."""

    velocity: Tensor
    frames: Tensor


def embed(pipeline: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings and masks of prompts."""
    embeds, mask, _, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False, complex_human_instruction=None)
    return embeds, mask


def questions(pipeline: Any) -> Questions:
    """The held-out pictures at three noise levels, and a ring in each colour on each of three backgrounds."""
    held_out = scenes("held out")
    pixels = torch.stack([torch.from_numpy(np.array(photograph(scene))).permute(2, 0, 1) for scene in held_out]) / 127.5 - 1
    masks = torch.stack([torch.from_numpy(np.array(mask_of(scene))) for scene in held_out])[:, None] / 255
    latents = pipeline.vae.encode(pixels.float()).latent * pipeline.vae.config.scaling_factor
    latents = latents.repeat(len(SIGMAS), 1, 1, 1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor(SIGMAS).repeat_interleave(NUM_PICTURES)
    spread = sigma[:, None, None, None]
    embeds, read = embed(pipeline, [caption(scene) for scene in held_out])
    asked = [f"{caption(Scene(NEW_SHAPE, colour, ''))} on a {ground} background" for colour in COLOURS for ground in list(BACKGROUNDS)[:3]]
    return Questions(
        noisy=(1 - spread) * latents + spread * noise,
        sigma=sigma,
        target=noise - latents,
        texts=(embeds.repeat(len(SIGMAS), 1, 1), read.repeat(len(SIGMAS), 1)),
        mask=torch.nn.functional.avg_pool2d(masks, SIZE // latents.shape[-1]).repeat(len(SIGMAS), 1, 1, 1),
        prompts=embed(pipeline, asked),
        no_prompt=embed(pipeline, [""] * len(asked)),
    )


def answer(pipeline: Any, asked: Questions) -> Answers:
    """Ask the pipeline's model as it is."""
    embeds, mask = asked.texts
    velocity = pipeline.transformer(asked.noisy, encoder_hidden_states=embeds, encoder_attention_mask=mask, timestep=1000 * asked.sigma)
    made = pipeline(
        prompt=None,
        prompt_embeds=asked.prompts[0],
        prompt_attention_mask=asked.prompts[1],
        negative_prompt=None,
        negative_prompt_embeds=asked.no_prompt[0],
        negative_prompt_attention_mask=asked.no_prompt[1],
        num_inference_steps=12,
        guidance_scale=3.0,
        height=SIZE,
        width=SIZE,
        use_resolution_binning=False,
        generator=[torch.Generator().manual_seed(number) for number in range(len(asked.prompts[0]))],
        output_type="pt",
    ).images  # [M, 3, H, W] in [0, 1]
    inner = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inner[FRAME:-FRAME, FRAME:-FRAME] = True
    return Answers(velocity.sample, 255 * made.permute(0, 2, 3, 1)[:, ~inner])


def measure(before: Answers, after: Answers, asked: Questions) -> Numbers:
    """How far a model has moved, inside and outside of masks and at the edges of pictures, and its errors."""
    inside, outside = asked.mask == 1, asked.mask == 0  # latents that are wholly the one or the other

    def over(values: Tensor, where: Tensor) -> float:
        return float(values[where.expand_as(values)].mean())

    moved, size = (after.velocity - before.velocity).square(), before.velocity.square()
    error = (after.velocity - asked.target).square()
    return {
        "inside": (over(moved, inside) / over(size, inside)) ** 0.5,
        "outside": (over(moved, outside) / over(size, outside)) ** 0.5,
        "error inside": over(error, inside),
        "error outside": over(error, outside),
        "edges": float((after.frames - before.frames).square().mean(dim=(1, 2)).sqrt().mean()),
    }


@torch.no_grad()
def measured(pipeline: Any, run: Path, before: Answers, asked: Questions) -> dict[int, Numbers]:
    """The measures of every checkpoint of a run, by step."""
    found = {0: measure(before, before, asked)}
    for checkpoint in sorted((run / "checkpoints").glob("step-*")):
        pipeline.load_lora_weights(checkpoint)
        found[int(checkpoint.name.removeprefix("step-"))] = measure(before, answer(pipeline, asked), asked)
        pipeline.unload_lora_weights()
    return found


def averaged(runs: Sequence[Mapping[int, Numbers]], name: str) -> dict[int, float]:
    """The mean of one measure over the seeds, by step."""
    return {step: sum(run[step][name] for run in runs) / len(runs) for step in runs[0]}


def demonstrate() -> dict[str, list[dict[int, Numbers]]]:
    """Train and measure all arms with all seeds."""
    pipeline = SanaPipeline.from_pretrained(QUICKSTART / "checkpoint", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        asked = questions(pipeline)
        before = answer(pipeline, asked)
    found: dict[str, list[dict[int, Numbers]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as place:
        write_data(Path(place))
        for seed in SEEDS:
            for number, (arm, extra) in enumerate(ARMS.items()):
                run = train(Path(place), f"{number}-{seed}", config(extra, seed))
                found[arm].append(measured(pipeline, run, before, asked))
                print(arm, seed, found[arm][-1][STEPS])
    return found


def lines_of(found: Mapping[str, Sequence[Mapping[int, Numbers]]], name: str, label: str, arms: Sequence[str]) -> list[Series]:
    """One measure by step: the mean over the seeds, and half of what they differ by."""
    lines = []
    for arm in arms:
        mean = averaged(found[arm], name)
        spread = [(max(values) - min(values)) / 2 for values in ([run[step][name] for run in found[arm]] for step in mean)]
        lines.append(Series(f"{label}{arm}", list(mean), list(mean.values()), spread, dashed=name == "inside"))
    return lines


def draw(found: Mapping[str, Sequence[Mapping[int, Numbers]]]) -> None:
    """How far each run has moved, by step: the edges of generated pictures, and predictions outside and inside of masks."""
    edges = lines_of(found, "edges", "", tuple(found))
    plot(CLAIMS / "masked.png", TITLE, "optimizer step", "change at the edges of generated pictures, of 255", edges)
    moved = [
        *lines_of(found, "outside", "outside: ", tuple(found)),
        *lines_of(found, "inside", "inside: ", ("no masks", "masks")),
    ]
    plot(CLAIMS / "masked-predictions.png", "Masked loss: predictions", "optimizer step", "change, relative to the prediction", moved)


def tell(found: Mapping[str, Sequence[Mapping[int, Numbers]]], seconds: float) -> None:
    """The fragment: claim, numbers, setting."""
    last = {arm: {name: averaged(runs, name)[STEPS] for name in runs[0][STEPS]} for arm, runs in found.items()}
    start = found["no masks"][0][0]
    lines = [["before training", "0", "0", f"{start['error inside']:.2f}", f"{start['error outside']:.2f}", "0"]]
    for arm, one in last.items():
        moved = [f"{one[name]:.2f}" for name in ("inside", "outside", "error inside", "error outside")]
        lines.append([arm, *moved, f"{one['edges']:.1f}"])
    head = ["run", "change inside", "change outside", "error inside", "error outside", "change of the edges of pictures"]
    plain, little, masked, kept = (last[arm] for arm in ARMS)
    claim = (
        "A masked loss is to teach an object and leave the background as it was. In pictures made of prompts that name a background, the "
        f"edges change by {masked['edges']:.0f} of 255 where masks are used, and by {plain['edges']:.0f} where the room of the training "
        f"pictures is learnt too; with `background = 0.1` by {little['edges']:.0f}. It is not left quite alone: what is predicted of "
        f"held-out pictures outside of their masks changes by {masked['outside']:.0%} of its size, against {plain['outside']:.0%} without "
        "masks. The weights are shared, and where the loss is silent nothing holds them. With pictures of what the model knows beside it "
        f"(`is_regularisation`) the edges change by {kept['edges']:.0f} of 255, and those predictions by {kept['outside']:.0%}."
    )
    result = f"{rows(head, lines)}\n\n{RESULT}\n\n![Predictions](masked-predictions.png)"
    write_fragment("masked", TITLE, {"": claim, "Result": result, "Setting": SETTING}, seconds)


def main() -> None:
    """Train, measure, draw and tell."""
    torch.set_num_threads(1)
    found = demonstrate()
    draw(found)
    tell(found, time.process_time())


if __name__ == "__main__":
    main()

"""Train the quickstart's AutoencoderDC (8x smaller, 8 channels) on pictures drawn on the fly.

Run in examples/quickstart: `python -m pretrain.autoencoder OUT`, about six minutes on two cores.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from PIL import Image, ImageDraw
from torch.nn import functional

from pretrain.shapes import BACKGROUNDS, COLOURS, KNOWN_SHAPES, NEW_SHAPE, SIZE, SUPERSAMPLING, draw, placed

LATENT_CHANNELS = 8
LATENT_BOUND = 3.0  # larger latents are punished: nothing else keeps their scale where fp16 is precise
LATENT_NOISE = 0.04  # relative to the latents; the decoder learns to forgive a diffusion model's small errors


def random_colour(source: random.Random) -> tuple[int, int, int]:
    """A palette colour half of the time, any colour otherwise."""
    if source.random() < 0.5:
        return source.choice([*COLOURS.values(), *BACKGROUNDS.values()])
    return (source.randrange(256), source.randrange(256), source.randrange(256))


def scribble(source: random.Random) -> Image.Image:
    """A picture of random blobs, polygons and strokes, so that the autoencoder is not limited to our shapes."""
    side = SIZE * SUPERSAMPLING
    image = Image.new("RGB", (side, side), random_colour(source))
    pen = ImageDraw.Draw(image)
    for _ in range(source.randint(1, 4)):
        points = [(source.uniform(0, side), source.uniform(0, side)) for _ in range(source.randint(3, 5))]
        kind = source.randrange(4)
        if kind == 0:
            pen.polygon(points, fill=random_colour(source))
        elif kind == 1:
            pen.line(points, fill=random_colour(source), width=source.randint(8, 40), joint="curve")
        else:
            (x, y), radius = points[0], source.uniform(0.06, 0.35) * side
            width = 0 if kind == 2 else source.randint(12, 48)
            box = (x - radius, y - radius, x + radius, y + radius)
            colour = random_colour(source)
            pen.ellipse(box, fill=colour if kind == 2 else None, outline=colour, width=width)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def picture(source: random.Random) -> Image.Image:
    """A shape in palette colours three times out of four, a scribble otherwise."""
    if source.random() < 1 / 4:
        return scribble(source)
    shape = source.choice([*KNOWN_SHAPES, NEW_SHAPE])
    return draw(placed(shape, source.choice(list(COLOURS)), source.choice(list(BACKGROUNDS)), source))


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """The pictures as one tensor [B, 3, H, W] in -1..1."""
    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def build(seed: int) -> AutoencoderDC:
    """An untrained autoencoder of about half a million parameters."""
    torch.manual_seed(seed)
    widths, layers = (16, 32, 64, 64), (0, 1, 1, 1)
    return AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        attention_head_dim=8,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
    )


def train(model: AutoencoderDC, pool: torch.Tensor, minutes: float, batch_size: int, seed: int) -> None:
    """Train on the pool, uint8 [N, 3, H, W], for that many minutes with a one-cycle learning rate."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    start, step, progress = time.perf_counter(), 0, 0.0
    while progress < 1:
        rate = 3e-3 * min(1.0, progress / 0.05) * (1 - progress) ** 0.7
        for group in optimiser.param_groups:
            group["lr"] = rate
        index = torch.randint(len(pool), (batch_size,), generator=generator)
        batch = pool[index].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latent = model.encode(batch).latent.float()
            noise = torch.randn(latent.shape, generator=generator) * latent.detach().std()
            rebuilt = model.decode(latent + LATENT_NOISE * noise).sample.float()
        excess = functional.relu(latent.abs() - LATENT_BOUND).mean()
        loss = functional.l1_loss(rebuilt, batch) + functional.mse_loss(rebuilt, batch) + 0.1 * excess
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 100 == 0:
            print(f"step {step}  {time.perf_counter() - start:.0f} s  loss {loss.item():.4f}", flush=True)
        step += 1
        progress = (time.perf_counter() - start) / (60 * minutes)


@torch.no_grad()
def finish(model: AutoencoderDC, seed: int) -> tuple[float, float]:
    """Set `scaling_factor` to 1 / standard deviation of the latents; return it and the mean absolute pixel error."""
    source = random.Random(f"held out/{seed}")
    batch = pixels([picture(source) for _ in range(256)])
    latents = model.encode(batch).latent
    error = (model.decode(latents).sample.clamp(-1, 1) - batch).abs().mean().item() * 127.5
    factor = round(1 / latents.std().item(), 5)
    model.register_to_config(scaling_factor=factor)
    return factor, error


def main() -> None:
    """Command line: train, measure on held-out pictures, save in fp16."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--pictures", type=int, default=12000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    source = random.Random(arguments.seed)
    drawn = [np.asarray(picture(source)) for _ in range(arguments.pictures)]
    pool = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()
    model = build(arguments.seed)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters, {len(pool)} pictures")
    train(model.train(), pool, arguments.minutes, arguments.batch_size, arguments.seed)
    factor, error = finish(model.eval(), arguments.seed)
    model.half().save_pretrained(arguments.folder)
    print(f"scaling_factor {factor}, mean absolute error {error:.2f} of 255, saved in {arguments.folder}")


if __name__ == "__main__":
    main()

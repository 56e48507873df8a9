"""What is measured: a checkpoint, pictures, a config, and the bare loop that a run is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tunesmith_sana import SanaFamily

SIZES: dict[str, dict[str, int]] = {
    "tiny": {},
    "60M": {
        "num_attention_heads": 18,
        "attention_head_dim": 32,
        "num_layers": 12,
        "num_cross_attention_heads": 9,
        "cross_attention_head_dim": 64,
        "cross_attention_dim": 576,
    },
}
"""Changes to the transformer of Sana's tiny twin, by the name of the size."""
ENCODER = {"encoder_block_out_channels": (64, 128, 256, 256), "decoder_block_out_channels": (8, 8, 16, 16)}
"""Changes to the twin's autoencoder that give its encoder something to do."""
EDGE, NUM_PICTURES, BATCH = 64, 32, 2
SHIFT = 3.0
"""The shift of the flow schedule in the checkpoint's scheduler."""


def make_checkpoint(folder: Path, size: str, *, large_encoder: bool = False) -> Path:
    """A random Sana whose transformer has one of `SIZES`."""
    SanaFamily.tiny(folder)
    torch.manual_seed(0)
    if SIZES[size]:
        config = {**SanaTransformer2DModel.load_config(folder / "transformer"), **SIZES[size]}
        _replace(folder / "transformer", SanaTransformer2DModel.from_config(config))
    if large_encoder:
        _replace(folder / "vae", AutoencoderDC.from_config({**AutoencoderDC.load_config(folder / "vae"), **ENCODER}))
    return folder


def _replace(folder: Path, network: Any) -> None:
    for file in folder.iterdir():
        file.unlink()
    network.save_pretrained(folder)


def make_pictures(folder: Path, count: int, edge: int) -> Path:
    """Square pictures of noise with captions of one length, so that all batches have one shape."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (edge, edge, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"picture number {number:03}")
    return folder


def write_config(file: Path, checkpoint: Path, pictures: Path, *, steps: int, batch: int = BATCH, edge: int = EDGE) -> Path:
    """A config with the defaults of a run, but in fp32 on the CPU and without validation or checkpoints on the way."""
    file.write_text(
        f"""
[run]
steps = {steps}
batch_size = {batch}
precision = "no"
device = "cpu"
output = {str(file.parent / "runs")!r}
cache_dir = {str(file.parent / f"cache-{file.stem}")!r}

[model]
family = "sana"
path = {str(checkpoint)!r}
complex_human_instruction = false

[checkpoints]
every = false

[[datasets]]
path = {str(pictures)!r}
resolution = {edge}
"""
    )
    return file


def bare_loop(checkpoint: Path, batch: int = BATCH, edge: int = EDGE) -> Callable[[], None]:
    """One step of a bare loop on diffusers' own transformer: its inputs lie in memory, and nothing is checked or told."""
    model: Any = SanaTransformer2DModel.from_pretrained(checkpoint / "transformer").train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    latents = torch.randn(batch, model.config.in_channels, edge // 8, edge // 8)
    embeds = torch.randn(batch, len("picture number 000") + 1, model.config.caption_channels)
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)

    def step() -> None:
        noise = torch.randn_like(latents)
        sigma = torch.sigmoid(torch.randn(batch))
        sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
        level = sigma.reshape(-1, 1, 1, 1)
        noisy = (1 - level) * latents + level * noise
        (velocity,) = model(noisy, encoder_hidden_states=embeds, encoder_attention_mask=mask, timestep=sigma * 1000, return_dict=False)
        loss: Tensor = functional.mse_loss(velocity, noise - latents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step

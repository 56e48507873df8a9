"""Pixels to latents and back: the posterior mean, normalised with the mean and deviation that the VAE's configuration names."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor

from tunesmith import InputError


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Normalised latents, fp32 [B, C, (F + 3) / 4, H / 8, W / 8], of pixels [B, 3, F, H, W] in [-1, 1]; F is 4n + 1.

    The sides are those of `AutoencoderKLWan` 2.1. Nothing is drawn: the mean of the posterior, less the VAE's mean, by
    its deviation. Raises InputError if the configuration does not name the two; ValueError for other numbers of frames,
    of which the autoencoder would leave out the last.
    """
    if pixels.shape[2] % 4 != 1:
        raise ValueError(f"{pixels.shape[2]} frames cannot be encoded; the autoencoder takes 4n + 1")
    mean, deviation = _statistics(vae)
    values = pixels.to(get_module_execution_device(vae), vae.dtype)
    with torch.autocast(values.device.type, enabled=False):  # the autoencoder keeps its own precision
        latents: Tensor = vae.encode(values).latent_dist.mode().float()
    return (latents - mean.to(latents.device)) / deviation.to(latents.device)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels, fp32 [B, 3, 4T - 3, 8h, 8w] in [-1, 1], of normalised latents [B, C, T, h, w]; the inverse of `encode`.

    The first latent stands for one frame and each other for four. Raises InputError as `encode` does.
    """
    mean, deviation = _statistics(vae)
    values = latents.float() * deviation.to(latents.device) + mean.to(latents.device)
    values = values.to(get_module_execution_device(vae), vae.dtype)
    with torch.autocast(values.device.type, enabled=False):
        pixels: Tensor = vae.decode(values, return_dict=False)[0].float()
    return pixels.clamp(-1, 1)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of latents, fp32 [1, C, 1, 1, 1] each."""
    config = vae.config
    for name in ("latents_mean", "latents_std"):
        values = config.get(name)
        if values is None or len(values) != config.z_dim:
            raise InputError(
                f"the configuration of the VAE has no {name} of {config.z_dim} numbers; without them its latents are "
                "not those that the transformer was trained with: take the config.json that belongs to the VAE's weights"
            )
    mean, deviation = (
        torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std)
    )
    return mean, deviation

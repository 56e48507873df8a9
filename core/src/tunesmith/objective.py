"""Flow matching: the velocity target, and the distance that `[loss]` asks for."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .config.tables import LossTable


def mix(latents: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and their velocity target for `sigma` ([B] or broadcasting to [B, C, ...]).

    noisy = (1 - sigma) * x0 + sigma * noise, target = noise - x0 (Lipman et al. 2023, rectified flow).
    """
    sigma = spread(sigma, latents)
    return (1 - sigma) * latents + sigma * noise, noise - latents


def spread(sigma: Tensor, like: Tensor) -> Tensor:
    """Sigma with enough trailing dimensions to broadcast to `like`."""
    return sigma.reshape(*sigma.shape, *[1] * (like.ndim - sigma.ndim))


def distance(prediction: Tensor, target: Tensor, sigma: Tensor, table: LossTable) -> Tensor:
    """The unreduced loss [B, C, ...]: l2 is d^2, huber 2c(sqrt(d^2+c^2)-c), smooth_l1 2(sqrt(d^2+c^2)-c)."""
    if table.type == "l2":
        return functional.mse_loss(prediction, target, reduction="none")
    difference = prediction - target
    c = huber_c(spread(sigma, target), table)
    root = 2 * ((difference.square() + c * c).sqrt() - c)
    return root if table.type == "smooth_l1" else root * c


def huber_c(sigma: Tensor, table: LossTable) -> Tensor | float:
    """The knee of the Huber losses at each sigma.

    exponential: c^sigma. snr: (1-c)/(1+s)^2 + c with s = sqrt((1-sigma)/(sigma+1e-4)), the smallest at the clean end.
    """
    c = table.huber_c
    if table.huber_schedule == "exponential":
        return torch.exp(math.log(c) * sigma)
    if table.huber_schedule == "snr":
        ratio = ((1 - sigma) / (sigma + 1e-4)).sqrt()
        return (1 - c) / (1 + ratio).square() + c
    return c

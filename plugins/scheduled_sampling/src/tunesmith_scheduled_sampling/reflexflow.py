"""The terms of ReflexFlow (2512.04904) for samples that drifted: frequency compensation and anti-drift rectification."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def frequency_weight(clean: Tensor, biased: Tensor, made: Tensor, alpha: float) -> Tensor:
    """Weights [B, C, ...]: 1 + alpha * e / sum|e| of the sample, where e is what the prediction lost by the drift.

    `clean` is predicted of the true noisy latents, `biased` of those that the model drifted to. What is given is not `made`.
    """
    lost = (clean - biased) * made
    return 1 + alpha * functional.normalize(lost.flatten(1), p=1, dim=1).reshape(lost.shape)


def drift_distance(prediction: Tensor, noisy: Tensor, latents: Tensor, made: Tensor) -> Tensor:
    """The squared distance, a scalar, between the directions of the prediction and of x_t - x0, as a mean over samples."""
    towards, predicted = ((value * made).flatten(1) for value in (noisy - latents, prediction))
    return (functional.normalize(predicted, dim=1) - functional.normalize(towards, dim=1)).square().sum(dim=1).mean()

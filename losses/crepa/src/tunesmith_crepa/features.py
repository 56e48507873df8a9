"""The features of a frozen DINOv2, and how like them projected hidden states are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize
from transformers import Dinov2Model, Dinov2WithRegistersModel

from tunesmith import Component, InputError, Origin, TokenGrid, fetch_weights, load_frozen, read_json

KINDS = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}


class Encoder:
    """A DINOv2 by short name, Hub id or folder, read when first needed; InputError if it cannot be had."""

    def __init__(self, name: str, image_size: int, frames_per_batch: int) -> None:
        short = re.fullmatch("dinov2_vit([sblg])14(_reg)?", name)
        self.origin = Origin(f"facebook/dinov2-{'with-registers-' if short[2] else ''}{SIZES[short[1]]}" if short else name)
        self.image_size, self.frames_per_batch = image_size, frames_per_batch
        self.component: Callable[[], Component] = lambda: fetch_weights(self.origin, "encoder", None, or_root=True)
        self.network: Any = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """What its config.json says, and for what that leaves out transformers; without its weights."""
        config = read_json(self.origin, ["config.json"])
        if (kind := config.get("model_type", config.get("_class_name"))) not in KINDS:
            raise InputError(f"{self.origin} holds {kind or 'no model_type'}; crepa takes one of {', '.join(KINDS)}")
        return {**KINDS[kind].config_class().to_dict(), **config}

    def load(self, is_rehearsed: bool) -> Any:
        """The network; in a rehearsal, where no values are read, without its weights."""
        kind = KINDS[self.config["model_type"]]
        if not is_rehearsed:
            return load_frozen(kind, self.component(), torch.float32)
        with torch.device("meta"):  # elsewhere values are drawn and looked at
            network = kind(kind.config_class.from_dict(self.config))
        return network.to_empty(device="cpu").requires_grad_(False).eval()

    @torch.no_grad()
    def features(self, pixels: Tensor, shown: Sequence[int], grid: TokenGrid) -> list[Tensor]:
        """Patch features, [T, E] a sample in fp16, pooled to the grid, of the frames `shown` of [B, 3, (F,) H, W] in [-1, 1]."""
        if self.network is None:
            self.network = self.load(isinstance(pixels, FakeTensor)).to(pixels.device)
        frames = (pixels if pixels.ndim == 5 else pixels.unsqueeze(2))[:, :, list(shown)].transpose(1, 2).flatten(0, 1)
        mean, std = pixels.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]  # ImageNet's, [3, 1, 1] each
        edge, patch, found = max(self.image_size // self.config["patch_size"], 1), self.config["patch_size"], []
        for some in torch.split(frames, self.frames_per_batch):  # [n, 3, H, W]
            seen = interpolate(some / 2 + 0.5, (edge * patch, edge * patch), mode="bilinear", antialias=True)
            with torch.autocast(pixels.device.type, enabled=False):
                patches = self.network((seen - mean) / std).last_hidden_state[:, -(edge**2) :]  # class and registers come first
            square = patches.transpose(1, 2).unflatten(2, (edge, edge))  # [n, E, rows, columns]
            found.append(adaptive_avg_pool2d(square, (grid.height, grid.width)).flatten(2).transpose(1, 2).half())
        return list(torch.cat(found).reshape(len(pixels), grid.tokens, -1))


def align(states: Tensor, features: Tensor, distance: int, tau: float, cumulative: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Compare states and features [B, F, P, E]: R_f = sum_g exp(-|f - g| / tau) mean_p cos(y_fp, z_gp) (CREPA, 2506.09229).

    Returns, [B, F] each, R_f, R_f / the sum of its weights, and mean_p cos(y_fp, z_fp). No neighbour is beyond a clip's ends.
    """
    y, z = normalize(states.float(), dim=-1), normalize(features.float(), dim=-1)
    index = torch.arange(y.shape[1], device=y.device)
    apart, distance = (index[:, None] - index).abs(), min(distance, len(index) - 1)
    weights = torch.exp(-apart / tau) * (apart <= distance if cumulative else (apart == 0) | (apart == distance))  # [F, F]
    total = weights.sum(1)
    mean = (y * ((weights / total[:, None]) @ z.flatten(2)).view_as(z)).sum(-1).mean(-1)  # all neighbours in one product
    return mean * total, mean, (y.detach() * z).sum(-1).mean(-1)

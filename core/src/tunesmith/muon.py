"""Muon for the matrices of the blocks, and AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from .combined import CombinedOptimizer
from .model import TrunkModule


class MuonAdamW(CombinedOptimizer):
    """Muon (kellerjordan.github.io/posts/muon) and AdamW as one optimizer.

    A group says by `use_muon` whose it is; where it does not, Muon takes parameters of two dimensions. One `lr` and one
    `weight_decay` serve both, for by default Muon's updates are as large as those of AdamW (2502.16982); with
    `adjust_lr_fn = "original"` Muon wants a larger `lr`, and AdamW its own `adamw_lr`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        adamw_lr: float | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float | None = None,
    ) -> None:
        matrices, others = _shared_out(params)
        parts: list[Optimizer] = []
        if matrices:
            parts.append(
                Muon(
                    matrices,
                    lr=lr,
                    weight_decay=weight_decay,
                    momentum=momentum,
                    nesterov=nesterov,
                    ns_coefficients=ns_coefficients,
                    eps=eps,
                    ns_steps=ns_steps,
                    adjust_lr_fn=adjust_lr_fn,
                )
            )
        if others:
            parts.append(
                AdamW(
                    others,
                    lr=lr if adamw_lr is None else adamw_lr,
                    betas=adamw_betas,
                    eps=adamw_eps,
                    weight_decay=weight_decay if adamw_weight_decay is None else adamw_weight_decay,
                    fused=True,
                )
            )
        super().__init__(parts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what is kept of each parameter; the settings stay those that this optimizer was made with."""
        made = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, settings in zip(self.param_groups, made, strict=True):
            group.update(settings)


def _shared_out(params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups of Muon, and groups of AdamW."""
    groups = [dict(one) if isinstance(one, dict) else {"params": [one]} for one in params]
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        whose = group.pop("use_muon", None)
        for side, is_muons in zip(sides, (True, False), strict=True):
            own = [one for one in group["params"] if (one.ndim == 2 if whose is None else whose) is is_muons]
            if own:
                side.append({**group, "params": own})
    return sides


def matrices(trunk: Sequence[TrunkModule]) -> list[nn.Parameter]:
    """The weights of layers within the trunk that have two dimensions; no embeddings, and no tables, which a block itself holds.

    The first and the last layer of a model, and what embeds time and prompts, are outside of its trunk.
    """
    layers = (
        layer for entry in trunk for layer in entry.module.modules() if layer is not entry.module and not isinstance(layer, nn.Embedding)
    )
    return [weight for layer in layers for weight in layer.parameters(recurse=False) if weight.ndim == 2]

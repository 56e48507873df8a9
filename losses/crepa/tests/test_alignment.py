"""The alignment against recorded reference values: loss, gradients, weights by step, and where similarity cuts it off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tunesmith import Run
from tunesmith_crepa import Crepa, CrepaSettings
from tunesmith_crepa.features import align

GOLDEN = Path(__file__).parent / "golden"
TOLD = json.loads((GOLDEN / "crepa.json").read_text())
TENSORS = load_file(GOLDEN / "crepa.safetensors")
OURS = {
    "crepa_adjacent_distance": "distance",
    "crepa_adjacent_tau": "tau",
    "crepa_lambda": "weight",
    "crepa_cumulative_neighbors": "cumulative",
    "crepa_normalize_neighbour_sum": "divide_by_weights",
    "crepa_normalize_by_frames": "divide_by_frames",
    "crepa_scheduler": "schedule",
    "crepa_lambda_end": "end_weight",
    "crepa_warmup_steps": "warmup_steps",
    "crepa_decay_steps": "decay_steps",
    "crepa_power": "power",
    "crepa_cutoff_step": "cutoff_step",
    "crepa_similarity_threshold": "similarity_threshold",
    "crepa_similarity_ema_decay": "similarity_decay",
}
"""The reference's names of settings, and ours."""


def settings_of(told: dict[str, Any]) -> CrepaSettings:
    values = {OURS[key]: value for key, value in told.items() if key in OURS}
    if "crepa_threshold_mode" in told:
        values["recoverable"] = told["crepa_threshold_mode"] == "recoverable"
    idle = {"constant": {"end_weight", "decay_steps", "power"}, "polynomial": set()}.get(values.get("schedule", "constant"), {"power"})
    return CrepaSettings(**{key: value for key, value in values.items() if key not in idle})


def brought_together(states: Tensor, features: Tensor, *, pool: bool) -> tuple[Tensor, Tensor]:
    """What the reference does where frames or tokens differ in number, as they never do here: take the smaller number of both.

    Frames are picked evenly; tokens are interpolated, on the square grid where both numbers are squares, or else pooled.
    """
    frames = min(states.shape[1], features.shape[1])
    both = [one[:, torch.linspace(0, one.shape[1] - 1, frames).long()] for one in (states, features)]
    if pool and both[0].shape[2] != both[1].shape[2]:
        both = [one.mean(dim=2, keepdim=True) for one in both]
    tokens = min(one.shape[2] for one in both)
    states, features = (one if one.shape[2] == tokens else interpolated(one, tokens) for one in both)
    return states, features


def interpolated(states: Tensor, tokens: int) -> Tensor:
    rows = states.flatten(0, 1).transpose(1, 2)  # [B * F, E, P]
    side, edge = math.isqrt(states.shape[2]), math.isqrt(tokens)
    if (side**2, edge**2) == (states.shape[2], tokens):
        rows = functional.interpolate(rows.unflatten(2, (side, side)), (edge, edge), mode="bilinear").flatten(2)
    else:
        rows = functional.interpolate(rows, tokens, mode="linear")
    return rows.transpose(1, 2).reshape(*states.shape[:2], tokens, -1)


def test_there_are_eighteen_cases() -> None:
    assert len(TOLD["cases"]) == 18


@pytest.mark.parametrize("name", TOLD["cases"])
def test_loss_and_gradients_are_those_of_the_reference(name: str) -> None:
    case = TOLD["cases"][name]
    tensors = {key.removeprefix(f"{name}."): value for key, value in TENSORS.items() if key.startswith(f"{name}.")}
    settings, prefix = settings_of(case["settings"]), "in.projector."
    hidden, features = tensors["in.hidden_states"].requires_grad_(), tensors["in.frame_features"]
    projector = nn.Sequential(nn.LayerNorm(hidden.shape[-1]), nn.Linear(hidden.shape[-1], features.shape[-1]))
    projector.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
    projected = projector(hidden if hidden.ndim == 4 else hidden.unsqueeze(2))
    pair = brought_together(projected, features, pool=not case["settings"]["crepa_spatial_align"])
    score, cosine, own = align(*pair, settings.distance, settings.tau, settings.cumulative)
    score = cosine if settings.divide_by_weights else score
    loss = -settings.weight_at(case["step"], 1000) * (score.mean() if settings.divide_by_frames else score.sum(1).mean())
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensors["out.loss"].squeeze(), rtol=0, atol=1e-6)
    torch.testing.assert_close(hidden.grad, tensors["out.grad_hidden_states"], rtol=0, atol=1e-6)
    torch.testing.assert_close(projector[1].weight.grad, tensors["out.grad_projector.1.weight"], rtol=0, atol=1e-6)
    assert score.mean().item() == pytest.approx(case["alignment_score"], abs=1e-6)
    assert own.mean().item() == pytest.approx(case["self_similarity"], abs=1e-6)
    assert settings.weight_at(case["step"], 1000) == pytest.approx(case["weight"])


@pytest.mark.parametrize("told", TOLD["schedules"], ids=lambda told: told["settings"]["crepa_scheduler"])
def test_weights_by_step_are_those_of_the_reference(told: dict[str, Any]) -> None:
    settings = settings_of(told["settings"])
    assert [settings.weight_at(step, told["max_train_steps"]) for step in told["steps"]] == pytest.approx(told["weights"], abs=1e-12)


@pytest.mark.parametrize("told", TOLD["similarity_cutoff"], ids=lambda told: told["settings"]["crepa_threshold_mode"])
def test_similarity_cuts_off_where_it_does_in_the_reference(told: dict[str, Any]) -> None:
    """The step after it is the first that a similarity counts for; once cut off for good, nothing is measured any more."""
    crepa = Crepa("crepa", settings_of(told["settings"]))
    run = cast(Run, SimpleNamespace(config=SimpleNamespace(run=SimpleNamespace(cache=True)), step=1, total_steps=100, is_rehearsal=False))
    weights, averages = [], []
    for similarity in told["similarities"]:
        if crepa.phase(run)[1]:
            crepa._cosines = [torch.tensor(similarity)]
        crepa.on_step(run)
        weights.append(crepa.phase(run)[0])
        averages.append(crepa.average)
    assert weights == told["weights"]
    measured = len(averages) if crepa.settings.recoverable else weights.index(0.0) + 1
    assert averages[:measured] == pytest.approx(told["ema"][:measured], abs=1e-7)


def test_neighbours_weigh_by_their_distance() -> None:
    """Frames whose features are different unit vectors: the cosines of a state pick out how much each neighbour counts."""
    features = torch.eye(4)[None, :, None]  # [1, F, 1, E]
    e = math.exp(-1)
    for state, expected in enumerate([[1, 0, e, 0], [0, 1, 0, e], [e, 0, 1, 0], [0, e, 0, 1]]):
        states = torch.eye(4)[state].expand(1, 4, 1, 4)
        score, _, own = align(states, features, 2, 2.0, cumulative=False)
        assert score[0].tolist() == pytest.approx(expected)
        assert own[0].tolist() == torch.eye(4)[state].tolist()
    nearer = align(torch.eye(4)[0].expand(1, 4, 1, 4), features, 2, 2.0, cumulative=True)[0]
    assert nearer[0].tolist() == pytest.approx([1, math.exp(-0.5), e, 0])


def test_the_mean_cosine_is_one_where_all_frames_are_alike_whatever_the_neighbours_weigh() -> None:
    states = torch.randn(2, 1, 6, 8, generator=torch.Generator().manual_seed(0)).expand(2, 5, 6, 8)
    score, cosine, own = align(3 * states, states, 1, 1.0, cumulative=False)
    torch.testing.assert_close(cosine, torch.ones(2, 5))
    torch.testing.assert_close(own, torch.ones(2, 5))
    assert score[0].tolist() == pytest.approx([1.3678794, 1.7357589, 1.7357589, 1.7357589, 1.3678794])

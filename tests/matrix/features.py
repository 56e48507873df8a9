"""What the matrix combines: how each feature is switched on, and how it shows that it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith import LATENTS, mix

from .observing import Call, Observed
from .stage import SEEN
from .switches import ACCUMULATED, CHECKPOINTED

STEPS = 3
LACKED = {"wan_s2v": ("condition_embedder.pose_embedder.weight", "frame_packer.")}
"""What families have for inputs that the samples here do not bring: poses, and the frames before a clip."""
ROUTE = (1, 2)
"""Blocks that tokens bypass: of the first the output lacks them, behind the last they are back."""


@dataclass(frozen=True)
class Feature:
    """One thing of a pair: its name, the settings it is switched on by, and what fails where it does not work."""

    name: str
    shows: Callable[[Observed], None]
    table: str = ""
    overrides: tuple[str, ...] = ()


def masked_shows(seen: Observed) -> None:
    """What lies under black weighs nothing, what lies under white counts in full."""
    for step, loss in seen.steps:
        weight = loss.weights["masked"].expand_as(loss.elements)
        rows, columns = (side // 2 for side in weight.shape[-2:])
        assert bool((weight[..., :rows, :columns] == 1).all())
        assert float(weight.sum()) == weight.numel() / 4
        kept = step.keep
        assert kept is not None
        assert float(kept.float().mean()) == 1 / 4


def crepa_shows(seen: Observed) -> None:
    """A term of the loss, and a projector that learns by it."""
    projector = {name for name in seen.trained() if name.startswith("extra.crepa.")}
    assert projector
    assert projector <= seen.changed()
    assert all(float(loss.terms["crepa"].detach().abs()) > 0 for _, loss in seen.steps)


def tread_shows(seen: Observed) -> None:
    """Fewer tokens come out of the block of the route, and all of them out of every other, and of all without a gradient."""
    start, _ = ROUTE
    whole = max(tokens for _, tokens in seen.outputs)
    assert seen.tokens(start)
    assert all(tokens < whole for tokens in seen.tokens(start))
    for number in range(len(seen.run.model.blocks)):
        assert number == start or seen.tokens(number) == {whole}
        assert seen.tokens(number, for_gradient=False) <= {whole}


def scheduled_sampling_shows(seen: Observed) -> None:
    """Where there are predictions without a gradient, and there alone, noisy latents are no mix of latents and noise."""
    rolled_out = {call.position for call in seen.calls if not call.for_gradient}
    assert rolled_out
    for step, _ in seen.steps:
        mixed, _ = mix(step.batch.tensor(LATENTS), step.noise, step.sigma)
        assert torch.equal(step.noisy, mixed) is (step.position not in rolled_out)


def lora_shows(seen: Observed) -> None:
    """The adapter learns and nothing else of the denoiser does."""
    adapter = {name for name in seen.trained() if ".lora_" in name}
    assert adapter
    assert {name for name in seen.trained() if not name.startswith("extra.")} == adapter
    assert {name for name in seen.changed() if not name.startswith("extra.")} == adapter


def checkpointing_shows(seen: Observed) -> None:
    """Each block is called twice for one gradient."""
    for step, _ in seen.steps:
        for number in range(len(seen.run.model.blocks)):
            assert seen.calls.count(Call(step.position, number, for_gradient=True)) == 2


def accumulation_shows(seen: Observed) -> None:
    """Two micro-batches a step."""
    assert [(step.index, step.micro) for step, _ in seen.steps] == [
        (index, micro) for index in range(seen.run.total_steps) for micro in (0, 1)
    ]


def resume_shows(seen: Observed) -> None:
    """Shown by the test itself, which compares a run that was killed and went on with one that was not."""


FEATURES = {
    feature.name: feature
    for feature in (
        Feature("masked", masked_shows, "[plugins.masked]\n"),
        Feature("crepa", crepa_shows, f'[plugins.crepa]\nencoder = "ENCODER"\nimage_size = {SEEN}\n'),
        Feature("tread", tread_shows, f"[plugins.tread]\nroutes = [{{ ratio = 0.5, start = {ROUTE[0]}, end = {ROUTE[1]} }}]\n"),
        Feature("scheduled_sampling", scheduled_sampling_shows, "[plugins.scheduled_sampling]\nprobability = 1.0\nmax_steps = 2\n"),
        Feature("lora", lora_shows, "[plugins.lora]\nrank = 4\n"),
        Feature("checkpointing", checkpointing_shows, overrides=CHECKPOINTED),
        Feature("accumulation", accumulation_shows, overrides=ACCUMULATED),
        Feature("resume", resume_shows),
    )
}


def tables(names: frozenset[str], encoder: Path) -> str:
    """The tables of plugins that switch these features on."""
    return "".join(FEATURES[name].table for name in sorted(names)).replace("ENCODER", str(encoder))


def overrides(names: frozenset[str]) -> tuple[str, ...]:
    """The settings that switch these features on."""
    return tuple(one for name in sorted(names) for one in FEATURES[name].overrides)


def assert_updates_belong(seen: Observed) -> None:
    """What requires a gradient has changed, but for what is made for inputs that no sample has, and nothing else.

    In bf16 a few steps leave some weights what they were, and what is rounded away is kept beside them.
    """
    lacking = LACKED.get(seen.run.family.name, ())
    learning, changed = {name for name in seen.trained() if not name.startswith(lacking)}, seen.changed()
    assert changed
    assert changed <= learning
    assert changed == learning or seen.run.config.run.weights == "bf16"
    assert all(bool(torch.isfinite(loss.total)) for _, loss in seen.steps)

"""What tests see of the steps of a run while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import Tensor

from tunesmith import Loss, Run, Step
from tunesmith.hooks import HookCaller


@dataclass(frozen=True)
class Watched:
    """A micro-batch as it came out of `compute_loss`."""

    run: Run
    step: Step
    loss: Loss

    @property
    def dataset(self) -> str:
        return self.step.batch.sources[0].dataset

    @property
    def total(self) -> float:
        return float(self.loss.total.detach())

    def field(self, key: str) -> Tensor:
        return self.step.batch.tensor(key)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every micro-batch of the runs of a test, in their order."""
    seen: list[Watched] = []
    compute = HookCaller.compute_loss

    def watch(self: HookCaller, run: Run, step: Step) -> Loss:
        loss = compute(self, run, step)
        seen.append(Watched(run, step, loss))
        return loss

    monkeypatch.setattr(HookCaller, "compute_loss", watch)
    return seen

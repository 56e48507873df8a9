"""The matrix as one object: everything that its runs share is made once for each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.runs.conftest import Result
from tunesmith.config import load_config
from tunesmith.progress import Progress
from tunesmith.session import run
from tunesmith.trainer import Trainer

from .features import overrides, tables
from .observing import Observed, observing
from .pretending import pretending
from .stage import Stage, build, write_encoder


class Killed(BaseException):
    """What stands for a kill: nothing after it is done."""


class Matrix:
    """Trains a family with some features on."""

    def __init__(self, folder: Path) -> None:
        self.encoder = write_encoder(folder / "dinov2")
        self._losses: dict[tuple[str, frozenset[str], frozenset[str]], dict[int, float]] = {}
        self.stage_of: Callable[[str], Stage] = cache(lambda family: build(family, folder / family))

    def train(self, family: str, features: frozenset[str], name: str, more: str = "", *further: str) -> tuple[Result, Observed]:
        """The whole run, or what is left of one that was killed; with more tables, and further overrides."""
        file = self.stage_of(family).folder / f"{name}.toml"
        file.write_text(self.stage_of(family).config(tables(features, self.encoder) + more))
        config = load_config(file, (*overrides(features), *further))
        with Progress("quiet") as progress, observing() as seen:
            return Result(run(config, "latest", progress)), seen

    def train_pretending(self, family: str, features: frozenset[str], name: str, settings: Sequence[str]) -> tuple[Result, Observed]:
        """The same with further settings, of which those that save memory find a device to save it on."""
        with pretending(settings) as pretended:
            result, seen = self.train(family, features, name, "", *settings)
        seen.pretended = pretended
        return result, seen

    def losses(self, family: str, features: frozenset[str], settings: Sequence[str]) -> dict[int, float]:
        """The losses of such a run, which is made once."""
        asked = (family, features, frozenset(settings))
        if asked not in self._losses:
            self._losses[asked] = self.train_pretending(family, features, f"plain-{len(self._losses)}", settings)[0].losses
        return self._losses[asked]

    def train_and_kill(self, family: str, features: frozenset[str], name: str, step: int, settings: Sequence[str] = ()) -> None:
        """The same, up to the checkpoint of a step."""
        milestones = Trainer.milestones

        def reached(trainer: Trainer) -> None:
            milestones(trainer)
            if trainer.run.step == step:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "milestones", reached)
            with pytest.raises(Killed):
                self.train_pretending(family, features, name, settings)


@pytest.fixture(scope="session")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Twins, data, encoder and caches of this process."""
    return Matrix(tmp_path_factory.mktemp("matrix"))

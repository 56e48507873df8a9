"""Every family at work on its twin, with and without routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.families.conftest import FAMILIES, Case, config_text
from tunesmith import Batch, FamilyPlugin, Run, Step
from tunesmith.config import load_config
from tunesmith.data.hashing import FileHashes
from tunesmith.discovery import load_class
from tunesmith.engine import Engine
from tunesmith.objective import mix
from tunesmith.progress import Progress
from tunesmith.rundir import RunDirectory
from tunesmith.session import assemble


def routes(*given: tuple[float, int, int]) -> str:
    """Tables of routes, each a ratio with the first and the last block."""
    return "".join(f"[[plugins.tread.routes]]\nratio = {ratio}\nstart = {start}\nend = {end}\n" for ratio, start, end in given)


@dataclass
class Workshop:
    """A family's twin, and runs on it whose weights are the same."""

    name: str
    folder: Path
    open: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def checkpoint(self) -> Path:
        kind = load_class(self.name)
        assert issubclass(kind, FamilyPlugin)
        return kind.family_type.tiny(self.folder / "checkpoint")

    @cached_property
    def plain(self) -> Case:
        """A run without the plugin."""
        return self.case("")

    @cached_property
    def batch(self) -> Batch:
        """Two samples."""
        return self.plain.batch(self.plain.frames())

    def case(self, tables: str) -> Case:
        """A run whose config has these tables."""
        file = self.folder / "config.toml"
        file.write_text(config_text(self.name, self.checkpoint) + tables)
        config = load_config(file)
        cast = assemble(config)
        [plugin] = [plugin for plugin in cast.hooks.plugins if isinstance(plugin, FamilyPlugin)]
        hashes, progress = self.open.enter_context(FileHashes(self.folder / "hashes.sqlite")), self.open.enter_context(Progress("quiet"))
        run = Run(config, cast.family, cast.hooks, Engine(config.run), RunDirectory(self.folder / "run"), hashes, progress)
        return Case(self.checkpoint, cast.family, plugin, run)

    def step(self, position: int = 0, keep: Tensor | None = None) -> Step:
        """A micro-batch of the two samples."""
        latents, sigma = self.batch.tensor("latents"), torch.tensor([0.3, 0.8])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(position))
        return Step(0, 0, position, "train", self.batch, sigma, noise, *mix(latents, noise, sigma), keep)


@pytest.fixture(scope="session", params=FAMILIES)
def workshop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Each family in turn."""
    shop = Workshop(request.param, tmp_path_factory.mktemp(request.param))
    with shop.open:
        yield shop


Predict = Callable[[], Tensor]


@contextmanager
def at_work(case: Case, step: Step) -> Iterator[Predict]:
    """Within, `step` is the run's current one; what is given predicts for it."""
    case.run.current = step
    try:
        yield lambda: case.model.predict(step.noisy, step.sigma, step.batch)
    finally:
        case.run.current = None

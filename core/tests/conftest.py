"""Installed plugins for tests: real distributions in a folder on the path, with metadata and a module each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from textwrap import dedent

import pytest

HEADER = """
from typing import Literal
from pydantic import Field
from tunesmith import FamilyPlugin, InputPath, ModelSource, Plugin, Settings, Stage, hookimpl

"""

HOOKS = """
    @hookimpl
    def load_model(self, run, part):
        raise NotImplementedError

    @hookimpl
    def encode_batch(self, run, batch):
        raise NotImplementedError
"""
"""What a family must provide; tests that load nothing never call it."""

FAMILY = """
class ToySettings(Settings):
    variant: Literal["small", "large"] = "small"
    '''Which checkpoint.'''
    source: ModelSource = "toys/toy"
    '''Where it is.'''

class Probe(FamilyPlugin[ToySettings]):
    '''A family for tests.'''
"""

LOSS = """
class Nested(Settings):
    depth: int = Field(1, ge=1)
    '''How deep.'''

class ProbeSettings(Settings):
    weight: float = Field(1.0, gt=0, le=2)
    '''How much.'''
    block: int | None = Field(None, ge=0)
    '''Which one.'''
    kind: Literal["near", "far"] = "near"
    '''What sort.'''
    pattern: str
    '''Which names, as a pattern.'''
    file: InputPath | None = None
    '''Where from.'''
    nested: Nested = Nested()
    '''More.'''

class Probe(Plugin[ProbeSettings]):
    '''A loss for tests.'''
    stage = Stage.OBJECTIVE

    @hookimpl(wrapper=True)
    def compute_loss(self, run, step):
        return (yield)
"""

PLAIN = """
class Nothing(Settings):
    pass

class Probe(Plugin[Nothing]):
    '''A plugin for tests.'''
    stage = Stage.{stage}
    {body}
"""


class Installation:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: set[str] = set()

    def distribution(self, name: str, version: str = "1.0", entry_points: str = "", extras: tuple[str, ...] = ()) -> Path:
        """A distribution's metadata."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        provides = "".join(f"Provides-Extra: {extra}\n" for extra in extras)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: About {name}.\n{provides}")
        (info / "entry_points.txt").write_text(entry_points)
        return info

    def plugin(self, name: str, source: str, distribution: str | None = None, version: str = "1.0", target: str = "Probe") -> None:
        """A plugin in a distribution of its own, whose module holds `source`."""
        project = distribution or f"acme-{name}"
        module = project.replace("-", "_") + "_module"
        self.modules.add(module)
        (self.folder / f"{module}.py").write_text(HEADER + dedent(source))
        self.distribution(project, version, f"[tunesmith]\n{name} = {module}:{target}\n")

    def plain(self, name: str, stage: str = "OBJECTIVE", body: str = "") -> None:
        """A plugin without hooks and settings; `body` stands in its class."""
        self.plugin(name, PLAIN.format(stage=stage, body=body))

    def imported(self) -> set[str]:
        """Which of the modules have been imported."""
        return self.modules & sys.modules.keys()


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """A folder of installed distributions, at the front of the path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    made = Installation(folder)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)
    sys.path_importer_cache.pop(str(folder), None)


@pytest.fixture
def alone(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """The same, with everything that is really installed out of sight."""
    discover = metadata.distributions
    monkeypatch.setattr("tunesmith.discovery.metadata.distributions", lambda: discover(path=[str(installation.folder)]))
    return installation


@pytest.fixture
def toy(installation: Installation) -> Installation:
    """A family `toyfamily` and a loss `toyloss`."""
    installation.plugin("toyfamily", FAMILY + HOOKS)
    installation.plugin("toyloss", LOSS)
    return installation

"""docs/plugin-authors.md is true: its package is sound, its plugin keeps the contract, its test passes."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from tests.docs.blocks import Block, blocks
from tests.house import ROOT
from tunesmith.contract import complaints, implementations

PAGE = ROOT / "docs/plugin-authors.md"
CODE_LINES = 30


def titled(title: str) -> Block:
    return next(block for block in blocks(PAGE) if block.title == title)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of the page as files, importable."""
    for block in blocks(PAGE):
        if block.title:
            (tmp_path / block.title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.title).write_text(block.text)
    monkeypatch.syspath_prepend(tmp_path / "src")
    monkeypatch.syspath_prepend(tmp_path / "tests")
    yield tmp_path
    for name in ("tunesmith_edges", "test_edges"):
        sys.modules.pop(name, None)


def plugin_module(package: Path) -> ModuleType:
    module = importlib.import_module("tunesmith_edges")
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(package)
    return module


def test_a_loss_takes_30_lines() -> None:
    lines = titled("src/tunesmith_edges/__init__.py").text.splitlines()
    assert len([line for line in lines if line.strip()]) <= CODE_LINES


def test_the_entry_point_names_a_sound_plugin(package: Path) -> None:
    project: dict[str, Any] = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["tunesmith"]["edges"].split(":")
    assert module == plugin_module(package).__name__
    plugin = getattr(plugin_module(package), name)
    assert complaints(plugin) == []
    assert implementations(plugin) == {"compute_loss": True}


def test_the_settings_of_the_page_are_valid_and_mistakes_are_not(package: Path) -> None:
    settings = plugin_module(package).EdgesSettings
    excerpt = next(block for block in blocks(PAGE) if block.language == "toml" and block.title is None)
    assert settings(**tomllib.loads(excerpt.text)["plugins"]["edges"]).weight == 0.2
    with pytest.raises(ValidationError, match="greater than 0"):
        settings(weight=0)
    with pytest.raises(ValidationError, match="wieght"):
        settings(wieght=1)


def test_the_test_of_the_page_passes(package: Path) -> None:
    module = importlib.import_module("test_edges")
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def test_the_test_of_the_page_can_fail(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("test_edges")
    monkeypatch.setattr(module.Edges, "compute_loss", lambda self, run, step: None)
    with pytest.raises(Exception, match=r"edges|Loss"):
        module.test_a_ramp_of_slope_one_costs_its_weight()

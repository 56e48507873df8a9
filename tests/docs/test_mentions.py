"""What the documentation names is there: files, commands, options, stages, pages."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.docs.blocks import blocks
from tests.house import ROOT, core, files, shown
from tunesmith import Stage
from tunesmith.cli.app import app
from tunesmith.cli.commands import COMMANDS, PluginCommand

PAGES = list(files(".md"))
TUNE = typer.main.get_command(app)
pages = pytest.mark.parametrize("page", PAGES, ids=shown)


def code(page: Path) -> list[str]:
    """What a page sets as code: `spans`, and lines that are indented or in blocks without a language."""
    text = page.read_text()
    plain = re.findall(r"(?ms)^```\n(.*?)^```$", text)
    lines = [*re.findall(r"(?m)^ {4}(\S.*)$", text), *(line.strip() for block in plain for line in block.splitlines())]
    return [*re.findall(r"`([^`\n]+)`", text), *lines]


@pages
def test_links_lead_to_files_that_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


@pages
def test_source_files_exist(page: Path) -> None:
    shown_here = {block.title for block in blocks(page)}
    named = [part for part in code(page) if re.fullmatch(r"[\w/]+\.py", part) and part not in shown_here]
    homes = (ROOT, core().folder / "src/tunesmith", core().folder / "src", page.parent)
    assert [name for name in named if not any((home / name).is_file() for home in homes)] == []


def command(words: list[str]) -> Any:
    """The command that the words after `tune` begin with, of the core or of a plugin; None if there is none."""
    found: Any = TUNE
    for word in words:
        if not hasattr(found, "commands"):
            break
        found = found.get_command(None, word)
        if isinstance(found, PluginCommand):
            found = typer.main.get_command(metadata.EntryPoint(word, found.claims[0].entry_point, COMMANDS).load())
    return None if hasattr(found, "commands") else found


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = []
    for line in code(page):
        words = line.split("#")[0].split()
        if words[:1] != ["tune"] or len(words) < 2 or words[1].startswith("-"):
            continue
        meant = command(words[1:])
        known = set() if meant is None else {option for parameter in meant.params for option in parameter.opts}
        if meant is None or {word for word in words[2:] if word.startswith("--")} - known - {"--help"}:
            wrong.append(line)
    assert wrong == []


def test_commands_of_plugins_and_below_others_are_found() -> None:
    assert [command(line.split()) is None for line in ("run", "cache ls", "data split-audio", "cache", "cache fly", "fly")] == [
        *[False] * 3,
        *[True] * 3,
    ]


def test_stages_are_named_in_their_order() -> None:
    text = " ".join((ROOT / "docs/plugin-authors.md").read_text().split())
    assert ", ".join(stage.name for stage in Stage) in text

"""The generated pages are what the code says, and the site shows every page without asking another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import Field

from core.tests.data.support import Facts
from docs import combinations, generate
from tests.house import ROOT
from tunesmith import NoSettings, Plugin, Settings
from tunesmith.session import NEEDS_ALL_TOKENS


class Example(Settings):
    """`[example]`: what a section is made of."""

    steps: int | None = Field(None, ge=1)
    """How long."""
    rate: float = Field(gt=0, lt=1)
    """How much | how fast."""


def test_the_page_is_generated_from_the_types_as_they_are() -> None:
    assert generate.PAGE.read_text() == generate.page(), "settings changed: run python docs/generate.py"


def test_the_page_of_combinations_is_generated_from_the_code_as_it_is() -> None:
    assert combinations.PAGE.read_text() == combinations.page(generate.official()), "run python docs/generate.py"


class Choosy(Facts):
    name = "choosy"
    refuses = {"noise": "it has its own", "blind": "it sees | everything"}  # noqa: RUF012
    cautions = {"slow": "it takes long"}  # noqa: RUF012
    refuses_quantisation = {"nf4": "it collapses"}  # noqa: RUF012
    takes = {"control": True}  # noqa: RUF012


class Needy(Plugin[NoSettings]):
    requires = ("slow",)
    conflicts = {"blind": "both look"}  # noqa: RUF012


class Narrow(Plugin[NoSettings]):
    def narrows(self, family):
        return (range(1),)


class Reading(Plugin[NoSettings]):
    def reads_blocks(self, family):
        return (0,)


def test_combinations_tell_all_that_families_and_plugins_say_of_each_other() -> None:
    family = {"choosy": Choosy()}
    assert [list(combinations.verdicts(name, family)) for name in ("slow", "blind", "needy")] == [["told"], ["no"], ["yes"]]
    assert list(combinations.reasons(family)) == [
        ["`choosy`", "`[noise]`", "refused", "it has its own"],
        ["`choosy`", "`blind`", "refused", "it sees | everything"],
        ["`choosy`", "`slow`", "told", "it takes long"],
        ["`choosy`", "frozen weights in nf4", "refused", "it collapses"],
    ]
    assert list(combinations.data(family, {})) == [["`choosy`", "`image`", "-", "-", "no", "needed to sample", "no"]]
    assert list(combinations.among({"needy": Needy})) == [
        ["`needy`", "`slow`", "needed", "it works on what the other one makes"],
        ["`needy`", "`blind`", "refused", "both look"],
    ]
    told = combinations.rules({"narrow": Narrow, "reading": Reading, "needy": Needy})
    assert NEEDS_ALL_TOKENS in told
    assert "read so by `reading`, and tokens left out by `narrow`" in " ".join(told.split())
    assert "`" not in combinations.rules({"narrow": Narrow, "needy": Needy})
    assert combinations.table(["a"], [["b | c"]]).splitlines()[-1] == "| b \\| c |"


def test_a_section_says_what_a_setting_takes_its_default_and_its_meaning() -> None:
    assert generate.section(Example).splitlines() == [
        "## `[example]`",
        "",
        "What a section is made of.",
        "",
        "| setting | takes | default | meaning |",
        "|---|---|---|---|",
        "| `steps` | integer ≥ 1 | - | How long. |",
        "| `rate` | number > 0, < 1 | required | How much \\| how fast. |",
    ]


def test_every_default_of_the_page_is_one_that_toml_can_hold() -> None:
    rows = re.findall(r"(?m)^\| `\w+` \|.*?\| `(.*?)` \| ", generate.page())
    assert len(rows) > 30
    for value in rows:
        tomllib.loads(f"value = {value}")


def test_the_site_has_every_page_and_brings_its_own_fonts() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    shown = set(re.findall(r"(?m)^ +- [\w ]+: (\S+\.md)$", site))
    assert shown == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert re.search(r"(?m)^  font: false\b", site)


def test_the_site_builds_and_no_page_loads_anything_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md")))  # and the page for what is not found
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(https?:[^\"> ]*)", page.read_text())
        assert loaded == [], page.name
    assert "tunesmith_edges" in (tmp_path / "site/plugin-authors.html").read_text()
    assert '<span class="filename">pyproject.toml' in (tmp_path / "site/plugin-authors.html").read_text()

"""A family that diffusers already has is short: its author writes no more than the page on families promises."""

from __future__ import annotations

import re

import pytest

from tests.house import ROOT

MOST_LINES = 150
WRITTEN = ("family.py", "model.py", "plugin.py")
"""What an author must write; the twin, the table of variants and corrections of the networks themselves lie beside them."""
FAMILIES = ("sana", "sana_video")
"""Families whose networks and pipeline are those of diffusers."""


def lines(family: str) -> int:
    source = ROOT / f"models/{family}/src/tunesmith_{family}"
    return sum(len((source / name).read_text().splitlines()) for name in WRITTEN)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_diffusers_is_short(family: str) -> None:
    assert lines(family) <= MOST_LINES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_on_families_tells_how_long_each_is(family: str) -> None:
    page = (ROOT / "docs/families.md").read_text()
    assert re.findall(rf"(?m)^\| `{family}` \| (\d+) \|", page) == [str(lines(family))]

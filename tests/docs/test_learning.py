"""docs/learning.md is true where it can be asked: who wraps whom with all plugins at once, and what it says of costs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.docs.blocks import blocks
from tests.house import ROOT
from tests.matrix.stage import write_encoder
from tunesmith.cli.app import app
from tunesmith.config import load_config
from tunesmith.session import assemble, remarks

PAGE = ROOT / "docs/learning.md"
TEXT = PAGE.read_text()


ENCODERS = {"dinov2_vits14": 384, "dinov2_vitg14": 1536}
"""How many numbers their features have."""


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """The config of the page with all plugins, with a small encoder; of the model only what is known by heart is asked."""
    [block] = [block for block in blocks(PAGE) if block.title == "all.toml"]
    file = tmp_path / "all.toml"
    file.write_text(block.text.replace("dinov2_vits14", str(write_encoder(tmp_path / "encoder"))))
    return file


def test_explain_says_what_the_page_shows(everything: Path) -> None:
    done = CliRunner().invoke(app, ["explain", str(everything)])
    assert done.exit_code == 0, done.output
    assert f"```\n{done.stdout}```" in TEXT


def test_costs_are_those_that_a_plan_tells(everything: Path) -> None:
    config = load_config(everything)
    cast = assemble(config)
    told = "\n".join(remarks(config, cast))
    assert "about 1.3x per step" in told
    assert "about 1.3x per step" in TEXT
    tokens = cast.family.token_grid(81, 480, 832).tokens
    assert f"{tokens:,} tokens" in TEXT
    for name, width in ENCODERS.items():
        assert re.search(rf"{round(tokens * width * 2 / 1e6)} MB of (the default )?`{name}`", TEXT)
    latents = math.prod(cast.family.latent_shape(81, 480, 832)) * 4
    assert f"beside {round(latents / 1e6)} MB of latents" in TEXT
    saved = 0.5 * len(range(2, cast.family.num_blocks - 2)) / cast.family.num_blocks
    assert f"{saved:.0%} above, for {cast.family.num_blocks} blocks".replace("%", " %") in TEXT

"""Every TOML example of the documentation is a config, or a part of one, that `tune` takes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.docs.blocks import Block, all_blocks
from tests.house import files, packages, shown
from tunesmith.config import ConfigErrors, load_config

REST = {
    "run": "[run]\nsteps = 1\n",
    "model": '[model]\nfamily = "sana"\nvariant = "1.6b-1024"\n',
    "datasets": '[[datasets]]\npath = "photos"\n',
}
"""What every config must have: put beside an example that shows other tables."""
IMAGINED = {"docs/plugin-authors.md": {"edges", "array"}}
"""Plugins and kinds of datasets that a page invents, which has a test of its own."""
examples = [block for block in all_blocks("toml") if block.title is None]
config_files = [path for path in files(".toml") if "examples" in path.parts]


def imagined(block: Block) -> bool:
    told = tomllib.loads(block.text)
    named = {*told.get("plugins", {}), *(table.get("kind") for table in told.get("datasets", ()))}
    return bool(IMAGINED.get(block.place.split(":")[0], set()) & named)


def completed(text: str) -> str:
    """An example with the tables that it leaves out."""
    return text + "\n" + "\n".join(table for name, table in REST.items() if name not in tomllib.loads(text))


@pytest.mark.parametrize("block", [block for block in examples if not imagined(block)], ids=lambda block: block.place)
def test_example_is_valid(block: Block, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(completed(block.text))
    (tmp_path / "photos").mkdir()
    assert load_config(config).family


@pytest.mark.parametrize("config", config_files, ids=shown)
def test_config_of_the_examples_is_valid(config: Path) -> None:
    assert load_config(config).family


def test_a_wrong_example_would_be_found(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(completed("[optimizer]\nlearning_rate = 1e-4\n"))
    with pytest.raises(ConfigErrors, match="learning_rate"):
        load_config(config)


def test_every_package_has_a_config_in_its_readme() -> None:
    shown_in = {block.place.split(":")[0] for block in examples}
    assert [package.where for package in packages() if f"{package.where}/README.md" not in shown_in] == []

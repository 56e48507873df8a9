"""A way to run a config on a tiny checkpoint and a few pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs.conftest import shades, short_run, start_run, twin

__all__ = ["shades", "train", "twin"]

Runner = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, twin: Path, shades: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run the common tables and `extra`, with `--set` overrides; gives the run's directory."""
    monkeypatch.chdir(tmp_path)

    model = f'family = "sana"\npath = {str(twin)!r}\ncomplex_human_instruction = false'
    dataset = f"path = {str(shades)!r}\nresolution = 64"

    def start(name: str, extra: str, *overrides: str) -> Path:
        text = short_run(model, "lr = 1e-2", dataset, TABLES + extra, batch_size=1)
        return start_run(tmp_path / f"{name}.toml", text, overrides).path

    return start


TABLES = """
[checkpoints]
every = 1

[validation]
prompts = { grey = "a shade" }
resolutions = ["64x64"]
steps = 2
at_start = false

"""

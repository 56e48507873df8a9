"""What the tests of group offload share: the pretended device, a twin, pictures, and a way to run a config."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count

import numpy as np
import pytest
from PIL import Image

from tests.runs.conftest import Result, short_run, start_run
from tunesmith_sana import SanaFamily

from .pretended import Device, pretend

Runner = Callable[..., Result]
VALIDATION = """
[validation]
prompts = { grey = "a shade" }
resolutions = ["64x64"]
steps = 2
at_start = false
at_end = false

"""
SAMPLES = "validation.at_end=true"


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Run the common tables, `extra` and overrides on a twin, three steps in a directory of its own; all runs share the cache."""
    folder, number = tmp_path_factory.mktemp("offload"), count()
    for shade in range(2):
        (folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 90 * shade, np.uint8)).save(folder / f"pictures/{shade}.png")
        (folder / f"pictures/{shade}.txt").write_text(f"shade {shade}")
    model = f'family = "sana"\npath = {str(SanaFamily.tiny(folder / "twin"))!r}\ncomplex_human_instruction = false'
    dataset = f"path = {str(folder / 'pictures')!r}\nresolution = 64"
    places = (f"run.output={str(folder / 'runs')!r}", f"run.cache_dir={str(folder / 'cache')!r}")

    def start(extra: str, *overrides: str) -> Result:
        text = short_run(model, "lr = 1e-2", dataset, VALIDATION + extra, steps=3, batch_size=1)
        return start_run(folder / f"{next(number)}.toml", text, ("run.gradient_checkpointing=true", *places, *overrides))

    return start


@pytest.fixture(scope="session")
def plain(train: Runner) -> Runner:
    """The same for runs without offload, each made once."""
    return cache(train)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device on which weights are copies, and nothing but NaN once they have left it."""
    return pretend(monkeypatch)

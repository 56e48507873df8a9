"""What a run tells when it starts, and the noise levels that its plugins can ask it for."""

from dataclasses import replace

import numpy as np
import pytest

from tunesmith import NoSettings, Plugin, Stage
from tunesmith.progress import Progress
from tunesmith_sana import SanaFamily

from . import conftest
from .conftest import LORA
from .watching import watched

__all__ = ["watched"]

BRIEF = ("run.steps=1", "validation.at_start=false", "validation.at_end=false")


class Costly(Plugin[NoSettings]):
    """Has something to say."""

    stage = Stage.SAMPLE

    def remarks(self, config, family):
        return (f"costs a bit, over {config.run.steps} steps and {family.num_blocks} blocks",)


def test_remarks_and_cautions_are_told_before_anything_is_encoded(train, monkeypatch):
    def with_costly(config):
        return replace(config, plugins={**config.plugins, "costly": NoSettings()}, classes={**config.classes, "costly": Costly})

    told: list[str] = []
    stage = Progress.stage

    def tell_stage(progress, title, total):
        told.append(title)
        return stage(progress, title, total)

    monkeypatch.setattr(conftest, "prepared", with_costly)
    monkeypatch.setattr(SanaFamily, "cautions", {"lora": "is small", "other": "is not in this run"})
    monkeypatch.setattr(Progress, "message", lambda self, text: told.append(text))
    monkeypatch.setattr(Progress, "stage", tell_stage)
    train("told", LORA, *BRIEF)
    assert told[:2] == ["lora: is small", "costly: costs a bit, over 1 steps and 4 blocks"]
    assert "other" not in "".join(told)


@pytest.mark.parametrize("shift", ["none", 3.0, "auto"])
def test_a_plugin_can_ask_for_the_shift_by_which_sigmas_were_drawn(train, watched, shift):
    train("drawn", "[noise]\nshift = 'none'\n", *BRIEF)
    train("shifted", f"[noise]\nshift = {shift!r}\n", *BRIEF)
    plain, shifted = watched
    tokens = shifted.run.model.token_grid(shifted.field("latents")).tokens
    factor = shifted.run.sigmas.shift(tokens)
    unshifted = plain.step.sigma.double().numpy()
    np.testing.assert_allclose(shifted.step.sigma, factor * unshifted / (1 + (factor - 1) * unshifted), rtol=1e-6)
    assert factor == {"none": 1.0, 3.0: 3.0}.get(shift, pytest.approx(np.exp(0.5)))  # at most 256 tokens

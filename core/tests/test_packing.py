"""Weights that one plugin packs and another needs: refused by the core, which both tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.config import ConfigErrors, load_config
from tunesmith.session import assemble

from .test_assembly import FAILS, FAMILY, written

PACKS = """
class Layers(Settings):
    layers: list[str] = []
    '''Which are packed.'''

class Probe(Plugin[Layers]):
    '''Packs some layers.'''
    stage = Stage.CONVERT

    def packs(self, config, family):
        return self.settings.layers
"""
NEEDS = """
class Layers(Settings):
    layers: dict[str, str] = {}
    '''Which are needed, and what for.'''

class Probe(Plugin[Layers]):
    '''Needs some layers as they are.'''
    stage = Stage.ADAPT

    def needs_weights(self, config, family):
        return self.settings.layers
"""
NEEDED = "[plugins.need]\nlayers = { a = 'norms', b = 'sums', c = 'norms' }\n"


@pytest.fixture(autouse=True)
def _installed(installation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installation.plugin("facts", FAMILY)
    installation.plugin("pack", PACKS)
    installation.plugin("need", NEEDS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("packed", "count", "first", "purposes"), [("'c', 'd'", 1, "c", "norms"), ("'c', 'b', 'a'", 3, "a", "norms and sums")]
)
def test_layers_that_are_needed_and_packed_are_refused_with_their_number_and_the_line(packed, count, first, purposes):
    with pytest.raises(ConfigErrors) as raised:
        assemble(load_config(written(f"[plugins.pack]\nlayers = [{packed}]\n{NEEDED}")))
    assert str(raised.value) == (
        f"c.toml:11: [plugins.need] need needs the weights of layers as they are for {purposes}, and pack packs {count} of them, such "
        f"as that of {first}: let pack leave them as they are, or need do without {purposes}"
    )


@pytest.mark.parametrize("plugins", [NEEDED, f"[plugins.pack]\nlayers = ['d']\n{NEEDED}", "[plugins.pack]\nlayers = ['a']\n"])
def test_other_layers_may_be_packed(plugins):
    assert assemble(load_config(written(plugins)))


@pytest.mark.parametrize("asked", ["packs", "needs_weights"])
def test_what_fails_when_asked_about_weights_is_blamed_on_its_plugin(installation, asked):
    installation.plain("careless", body=FAILS.replace("remarks", asked))
    with pytest.raises(ZeroDivisionError) as raised:
        assemble(load_config(written("[plugins.careless]\n[plugins.pack]\nlayers = ['a']")))
    assert any("careless" in note and asked in note for note in raised.value.__notes__)

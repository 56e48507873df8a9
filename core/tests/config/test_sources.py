"""Datasets whose files a plugin lists are read with the plugin's settings and get the name that it gives."""

from __future__ import annotations

import pytest

from tunesmith.config import load_config

SHELF = """
from tunesmith import NoSettings, SourcePlugin

class Shelf(Settings):
    '''Which shelf.'''
    room: str
    '''Where it stands.'''
    dataset: str = "not asked for"
    '''A key like any other.'''

class Probe(SourcePlugin[NoSettings, Shelf]):
    '''Shelves for tests.'''
    stage = Stage.LOAD

    {body}

    def listing(self, settings, kind, folder, funnel): ...
"""
NAMES = """@classmethod
    def dataset_name(cls, settings):
        return settings.room
"""
CONFIG = '[run]\nsteps = 1\n[model]\nfamily = "toyfamily"\n[[datasets]]\nsource = {{ plugin = "shelf", room = "up/the stairs" }}\n{more}'


@pytest.fixture
def dataset(toy, tmp_path):
    def dataset(body, more=""):
        toy.plugin("shelf", SHELF.format(body=body))
        path = tmp_path / "c.toml"
        path.write_text(CONFIG.format(more=more))
        [table] = load_config(path).datasets
        return table

    return dataset


def test_a_dataset_without_name_is_called_as_its_plugin_says(dataset):
    table = dataset(NAMES)
    assert table.name == "the-stairs"
    assert table.source == {"plugin": "shelf", "room": "up/the stairs", "dataset": "not asked for"}


def test_a_dataset_is_called_as_the_plugin_that_gives_no_name(dataset):
    assert dataset("").name == "shelf"


def test_the_name_in_the_table_counts_more(dataset):
    assert dataset(NAMES, 'name = "mine"').name == "mine"


def test_a_mistake_in_the_name_is_the_plugin_s(dataset):
    with pytest.raises(ZeroDivisionError) as caught:
        dataset(NAMES.replace("settings.room", "1 / 0"))
    assert caught.value.__notes__ == ["in dataset_name of plugin 'shelf' (acme-shelf 1.0)"]

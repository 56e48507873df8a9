"""What the pre-flight says of a dataset."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tunesmith.config.datasets import ImageTable
from tunesmith.data.preflight import _origin


def test_paths_among_the_settings_of_a_source_are_told_as_text():
    table = ImageTable(source={"plugin": "lister", "root": Path("photos"), "split": "train"})
    dataset: Any = SimpleNamespace(table=table)
    assert _origin(dataset) == "lister: root = 'photos', split = 'train'"

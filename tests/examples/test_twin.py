"""examples/make_twin.py: what is typed wrong is told in a sentence, and what is there is kept."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.house import ROOT


@pytest.fixture
def make_twin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Do as `python make_twin.py ...` does, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["make_twin.py", *arguments])
        runpy.run_path(str(ROOT / "examples/make_twin.py"), run_name="__main__")

    return make


def test_a_twin_is_a_checkpoint_with_every_part(make_twin, tmp_path: Path) -> None:
    make_twin("sana_video", "some/where/twin")
    assert sorted(file.name for file in (tmp_path / "some/where").iterdir()) == ["twin"]
    parts = {file.name for file in (tmp_path / "some/where/twin").iterdir() if file.is_dir()}
    assert parts == {"scheduler", "text_encoder", "tokenizer", "transformer", "vae"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sana_vidoe", "twin"), "did you mean 'sana_video'"),
        (("lora", "twin"), "the plugin 'lora' is no model family; `tune plugins` lists what is installed"),
        (("sana_video",), "usage: python make_twin.py FAMILY FOLDER"),
    ],
)
def test_what_is_typed_wrong_is_told_and_nothing_is_made(make_twin, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        make_twin(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_kept(make_twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin/mine").write_text("mine")
    make_twin("sana_video", "twin")
    assert [file.name for file in (tmp_path / "twin").iterdir()] == ["mine"]
    assert "twin is there already and was kept" in capsys.readouterr().out

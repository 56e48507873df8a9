"""docs/recovering.md is true: each failure on it is provoked, and what the page quotes is what a run says."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from PIL import Image

from tests.house import ROOT
from tests.runs.conftest import config_text, pictures, twin  # noqa: F401 - fixtures
from tunesmith.config import load_config
from tunesmith.errors import TunesmithError
from tunesmith.events import Event
from tunesmith.progress import Progress
from tunesmith.rundir import RunDirectory
from tunesmith.session import run

PAGE = ROOT / "docs/recovering.md"
BROKEN_PLUGIN = {
    "edges-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tunesmith-edges\nVersion: 0.1.0\n",
    "edges-1.0.dist-info/entry_points.txt": "[tunesmith]\nedges = tunesmith_edges:Edges\n",
    "tunesmith_edges.py": "import a_module_that_is_not_there\n",
}


class Killed(BaseException):
    """What stands for a kill: nothing after it is done."""


class Place:
    """A folder with a config, its data and a run of six steps that was killed after the fourth, to go on from."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.run = folder / "runs/photos"

    def tune(self, *overrides: str) -> str:
        """`tune run photos.toml`: everything that it says, its error too."""
        error = ""
        try:
            with Progress() as progress:
                run(load_config(Path("photos.toml"), overrides), "latest", progress)
        except TunesmithError as failed:
            error = str(failed)
        said = self.capsys.readouterr()
        return said.out + said.err + error

    def at_step(self, step: int, act: Callable[[], object]) -> None:
        """Have something happen when a step is reported."""
        append = RunDirectory.append

        def acting(directory: RunDirectory, event: Event) -> None:
            append(directory, event)
            if event.kind == "step" and event.step == step:
                self.monkeypatch.undo()
                self.monkeypatch.chdir(self.folder)
                act()

        self.monkeypatch.setattr(RunDirectory, "append", acting)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, twin: Path, pictures: Path) -> Path:  # noqa: F811
    """The place, made once."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(pictures, folder / "photos")
    (folder / "photos.toml").write_text(config_text(twin, Path("photos"), "[checkpoints]\nevery = 2\n"))
    with pytest.MonkeyPatch.context() as patch, Progress("quiet") as progress:
        patch.chdir(folder)
        append = RunDirectory.append

        def until_step_5(directory: RunDirectory, event: Event) -> None:
            if event.step == 5 and event.kind == "step":
                raise Killed
            append(directory, event)

        patch.setattr(RunDirectory, "append", until_step_5)
        with pytest.raises(Killed):
            run(load_config(Path("photos.toml")), "latest", progress)
    return folder


@pytest.fixture
def place(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    """A copy of the place, entered."""
    folder = tmp_path / "place"
    shutil.copytree(killed, folder)
    monkeypatch.chdir(folder)
    return Place(folder, monkeypatch, capsys)


def the_run_was_killed(place: Place) -> str:
    return place.tune()


def a_checkpoint_is_damaged(place: Place) -> str:
    weights = next((place.run / "checkpoints/step-000004/transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    return place.tune()


def the_disk_is_full(place: Place) -> str:
    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place.monkeypatch.setattr("tunesmith.rundir.sync", refuse)
    first = place.tune()
    place.monkeypatch.undo()
    place.monkeypatch.chdir(place.folder)
    return f"{first}\n{place.tune()}"


def a_folder_cannot_be_written_to_or_is_gone(place: Place) -> str:
    (place.folder / "locked").write_text("a file where a folder should be")
    first = place.tune("run.output=locked")
    place.at_step(6, lambda: place.run.rename("elsewhere"))
    second = place.tune()
    Path("elsewhere").rename(place.run)
    return f"{first}\n{second}\n{place.tune()}"


def the_config_was_changed(place: Place) -> str:
    return place.tune("run.seed=1") + "\n" + place.tune("optimizer.lr=1e-4")


def the_data_was_changed(place: Place) -> str:
    Image.new("RGB", (64, 64), "red").save(place.folder / "photos/new.png")
    (place.folder / "photos/new.txt").write_text("a red square")
    Image.new("RGB", (64, 64), "blue").save(place.folder / "photos/newer.png")
    (place.folder / "photos/newer.txt").write_text("a blue square")
    return place.tune()


def the_loss_is_not_finite(place: Place) -> str:
    return place.tune("run.name=wild", "optimizer.lr=1e30", "optimizer.warmup=0", "optimizer.clip_norm=false")


def the_cache_is_damaged(place: Place) -> str:
    for shard in (place.folder / "cache").glob("shard-*.bin"):
        shard.write_bytes(shard.read_bytes()[:100])
    return place.tune()


def pictures_or_clips_cannot_be_read(place: Place) -> str:
    (place.folder / "photos/0.png").write_text("<html>not found</html>")
    return place.tune("run.name=unreadable")


def a_plugin_is_broken(place: Place) -> str:
    for name, text in BROKEN_PLUGIN.items():
        (place.folder / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (place.folder / "site" / name).write_text(text)
    place.monkeypatch.syspath_prepend(str(place.folder / "site"))
    return place.tune("plugins.edges.weight=1.0")


def another_process_is_in_the_directory(place: Place) -> str:
    other = RunDirectory(place.run)
    other.create()
    said = place.tune()
    other.close()
    return said


Provocation: TypeAlias = Callable[[Place], str]
FAILURES: list[Provocation] = [
    the_run_was_killed,
    a_checkpoint_is_damaged,
    the_disk_is_full,
    a_folder_cannot_be_written_to_or_is_gone,
    the_config_was_changed,
    the_data_was_changed,
    the_loss_is_not_finite,
    the_cache_is_damaged,
    pictures_or_clips_cannot_be_read,
    a_plugin_is_broken,
    another_process_is_in_the_directory,
]


def sections() -> dict[str, str]:
    """What the page says below each heading."""
    parts = re.split(r"(?m)^## (.*)$", PAGE.read_text())[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def quotes(section: str) -> list[str]:
    """What a section quotes, a line each."""
    return [line for block in re.findall(r"(?ms)^```\n(.*?)^```$", section) for line in block.splitlines()]


def says(said: str, quote: str) -> bool:
    """Whether a line was said; `...` is anything."""
    return re.search(".*".join(map(re.escape, quote.split("..."))), said) is not None


def test_every_failure_of_the_page_is_provoked() -> None:
    assert [heading.lower().replace(" ", "_") for heading in sections()] == [provoke.__name__ for provoke in FAILURES]


@pytest.mark.parametrize("heading", sections())
def test_a_run_says_what_the_page_quotes(heading: str, place: Place) -> None:
    provoke = next(provoke for provoke in FAILURES if provoke.__name__ == heading.lower().replace(" ", "_"))
    quoted = quotes(sections()[heading])
    said = provoke(place)
    assert quoted
    assert [quote for quote in quoted if not says(said, quote)] == [], said


def test_a_quote_that_nothing_says_would_be_found() -> None:
    assert says("at step 4 of 6\ncannot write runs/x: full", "cannot write ...: full")
    assert not says("cannot write runs/x\n: full", "cannot write ...: full")

"""Hostile pictures are used as they should look or named with the reason; the run trains on the rest and changes nothing."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from tests.runs.conftest import Result
from tunesmith import Caption, Crop, Source
from tunesmith.config.datasets import ImageTable
from tunesmith.config.tables import RunTable
from tunesmith.data.dataset import Dataset
from tunesmith.data.images import load_pixels
from tunesmith.data.scan import survey
from tunesmith_sana import SanaFamily, SanaSettings

from .hostile import EDGE, LOST, QUADRANTS, USED, Hostile, write


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def home(place: Path) -> Path:
    return write(place)


@pytest.fixture(scope="module")
def family(twin: Path) -> SanaFamily:
    return SanaFamily(SanaSettings(path=str(twin)))


@pytest.fixture(scope="module")
def dataset(home: Path, family: SanaFamily) -> Dataset:
    return survey(ImageTable(path=str(home), resolution=EDGE), family, RunTable(steps=1, batch_size=2))


def found_colours(file: Path) -> list[tuple[int, ...]]:
    """The colour in the middle of each quadrant, 0 to 255, as training sees it."""
    size = (EDGE, EDGE)
    values = load_pixels(Source("set", file, Caption(""), Crop(size, size, (0, 0))))
    near, far = EDGE // 4, EDGE - EDGE // 4
    return [
        tuple(round((value + 1) * 127.5) for value in values[:, y, x].tolist())
        for y, x in ((near, near), (near, far), (far, near), (far, far))
    ]


def fingerprint(folder: Path) -> dict[str, object]:
    """Everything below a folder: kind, rights, times, content or target."""
    found: dict[str, object] = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names, "."):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            what: object = None
            if stat.S_ISLNK(status.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                what = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            found[path] = (status.st_mode, status.st_mtime_ns, status.st_ino, what)
    return found


def test_there_are_more_than_forty_and_no_two_of_one_name():
    names = [hostile.name for hostile in (*USED, *LOST)]
    assert len(names) == len(set(names)) > 60


@pytest.mark.parametrize("hostile", USED, ids=lambda hostile: ascii(hostile.name)[:40])
def test_a_picture_that_can_be_used_is_used_as_it_looks(home: Path, dataset: Dataset, hostile: Hostile):
    [sample] = [sample for sample in dataset.samples if sample.name == hostile.name]
    assert sample.probe.size == (EDGE, EDGE)
    assert all(caption.strip() for caption in sample.captions)
    assert hostile.colours is not None
    np.testing.assert_allclose(found_colours(home / hostile.name), hostile.colours, atol=6)


@pytest.mark.parametrize("hostile", LOST, ids=lambda hostile: ascii(hostile.name)[:40])
def test_a_picture_that_cannot_be_used_is_named_with_the_reason(
    home: Path, dataset: Dataset, family: SanaFamily, tmp_path: Path, hostile: Hostile
):
    """In a folder of its own beside a good one, so that the funnel names it among its examples."""
    (tmp_path / "outside.png").write_bytes((home.parent / "outside.png").read_bytes())
    (tmp_path / "outside.txt").write_text("outside")
    alone = tmp_path / "alone"
    alone.mkdir()
    path = alone / hostile.name
    hostile.make(path)
    (hostile.caption or (lambda file: (file.write_text("a caption"), None)[1]))(path.with_suffix(".txt"))
    found = survey(ImageTable(path=str(alone), resolution=EDGE), family, RunTable(steps=1))
    reasons = [(lost.station, lost.reason, lost.examples) for lost in found.funnel.losses]
    if not reasons:  # the header is whole: it is lost where the pixels are decoded
        [sample] = found.samples
        with pytest.raises(Exception, match=hostile.reason):
            found_colours(sample.file)
        return
    [(station, reason, examples)] = reasons
    assert found.samples == []
    assert station == hostile.station
    assert re.search(hostile.reason, reason)
    assert str(alone) not in reason  # one reason for all that share it
    assert examples[0].startswith(hostile.name)


def test_the_files_of_a_folder_that_is_named_like_a_picture_are_used_and_linked_folders_are_not(dataset: Dataset):
    assert "folder.png/inside.png" in [sample.name for sample in dataset.samples]
    assert ("a linked folder is not followed", ["linked-folder/"]) in [(lost.reason, lost.examples) for lost in dataset.funnel.losses]


def test_names_cannot_break_the_lines_of_the_funnel(tmp_path: Path, family: SanaFamily):
    (tmp_path / "a\nb\x1b[31m\u202e.png").write_bytes(b"")
    lines = survey(ImageTable(path=str(tmp_path), resolution=EDGE), family, RunTable(steps=1)).funnel.lines()
    assert [line for line in lines if r"(a\nb\x1b[31m\u202e.png)" in line]
    assert all(line.isprintable() for line in lines)


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path, family: SanaFamily):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    [lost] = survey(ImageTable(path=str(tmp_path), resolution=EDGE), family, RunTable(steps=1)).funnel.losses
    assert (lost.station, lost.count) == ("readable", 1)
    assert "not UTF-8" in str(lost)
    assert r"caf\udce9.png" in str(lost)
    str(lost).encode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_without_permission_are_named(tmp_path: Path, family: SanaFamily):
    (tmp_path / "closed.png").write_bytes(b"")
    (tmp_path / "closed.png").chmod(0)
    (tmp_path / "folder").mkdir(mode=0)
    found = survey(ImageTable(path=str(tmp_path), resolution=EDGE), family, RunTable(steps=1)).funnel.losses
    assert sorted(lost.reason for lost in found) == [
        "a folder that cannot be listed (Permission denied)",
        "cannot be read (Permission denied)",
    ]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, family: SanaFamily, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "closed").mkdir()
    listing = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refusing)
    [lost] = survey(ImageTable(path=str(tmp_path), resolution=EDGE), family, RunTable(steps=1)).funnel.losses
    assert str(lost) == "1 not readable: a folder that cannot be listed (Permission denied) (closed/)"


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_whole_run_trains_on_the_rest_and_changes_nothing(train, place: Path, home: Path, cache: str):
    before = fingerprint(place)
    settings = (
        "run.steps=4",
        "validation.at_start=false",
        "validation.at_end=false",
        f"run.cache={cache}",
        f"datasets.0.path={str(home)!r}",
    )
    result: Result = train("hostile", "[plugins.lora]\nrank = 2\n", *settings, "datasets.0.crop='center'", "datasets.0.variants=1")
    assert sorted(result.losses) == [1, 2, 3, 4]
    assert all(np.isfinite(loss) for loss in result.losses.values())
    assert fingerprint(place) == before
    [event] = [event for event in result.events if event["event"] == "data"]
    whole = re.match(r"dataset 'hostile': (\d+) found -> (\d+) readable -> (\d+) captioned -> (\d+) large enough", event["funnel"][0])
    assert whole is not None
    found, *_, sized = map(int, whole.groups())
    linked, inside = 1, 1
    assert found == len(USED) + len(LOST) + linked + inside
    if cache == "true":  # where all are decoded before the first step
        assert sized == len(USED) + inside


def test_the_base_picture_is_what_the_colours_say():
    assert len(set(QUADRANTS)) == 4

"""Which files a folder gives, and what a plugin's listing becomes."""

import os
import socket

import pytest

from core.tests.data.support import Facts, picture
from tunesmith import Entry, InputError, Listing, Settings, SourcePlugin, Stage
from tunesmith.config.datasets import ImageTable
from tunesmith.data.funnel import Funnel
from tunesmith.data.pictures import ImageKind
from tunesmith.listing.files import list_files
from tunesmith.listing.folder import homes_of, list_folder


def listed(where, folder, source=None):
    """The listing of a path or of a whole table, and its funnel."""
    asked = where if isinstance(where, ImageTable) else ImageTable(path=str(where))
    funnel = Funnel("set")
    return list_files(asked, ImageKind(asked, Facts()), folder, funnel, source), funnel


def names(listing):
    return [entry.name for entry in listing.entries]


def losses(funnel):
    return {(lost.reason): (lost.count, lost.examples) for lost in funnel.losses if lost.station == "readable"}


def test_files_are_listed_below_nested_folders_by_name_without_opening_any(tmp_path):
    for name in ("b/c/2.png", "b/1.JPG", "a.webp", "b.png", ".hidden/3.png", "b/.4.png", "b/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0)
    listing, funnel = listed(tmp_path, tmp_path)
    assert names(listing) == ["a.webp", "b.png", "b/1.JPG", "b/c/2.png"]
    assert [entry.where for entry in listing.entries] == [str(tmp_path / name) for name in names(listing)]
    assert (funnel.total, funnel.losses) == (4, ())


def test_what_is_no_file_is_named_and_not_opened(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "pipes.png").symlink_to(folder / "pipe.png")
    (folder / "old.bmp").touch()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(folder / "sock.png"))
        listing, funnel = listed(folder, tmp_path)
    assert names(listing) == []
    assert losses(funnel) == {
        "not a file with content but a folder, pipe or device": (3, ["pipe.png", "pipes.png", "sock.png"]),
        "cannot be read (Too many levels of symbolic links)": (1, ["round.png"]),
        "cannot be read (No such file or directory)": (1, ["gone.png"]),
        "a link that leaves the dataset's folder is not followed": (1, ["device.png"]),
        ".bmp is not read; make it .jpeg, .jpg, .png or .webp": (1, ["old.bmp"]),
    }
    assert funnel.total == 7


def test_links_are_followed_within_the_folder_and_out_of_it_named(tmp_path):
    folder, elsewhere = tmp_path / "set", tmp_path / "set2"
    picture(folder / "deep" / "a.png")
    picture(elsewhere / "secret.png")
    (folder / "b.png").symlink_to("deep/a.png")
    (folder / "c.png").symlink_to(elsewhere / "secret.png")
    (folder / "more").symlink_to(elsewhere)
    (folder / ".more").symlink_to(elsewhere)
    listing, funnel = listed(folder, tmp_path)
    assert names(listing) == ["b.png", "deep/a.png"]
    assert losses(funnel) == {
        "a link that leaves the dataset's folder is not followed": (1, ["c.png"]),
        "a linked folder is not followed": (1, ["more/"]),
    }


def test_the_dataset_s_folder_may_itself_be_a_link(tmp_path):
    picture(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names(listed(tmp_path / "link", tmp_path)[0]) == ["a.png", "b.png"]


def test_a_snapshot_in_a_hub_cache_may_point_to_its_blobs(tmp_path):
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "main" / "train"
    assert homes_of(snapshot) == (snapshot, tmp_path / "datasets--a--b" / "blobs")


def test_names_that_are_not_text_are_named(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    picture(tmp_path / "café\n☃.png")
    listing, funnel = listed(tmp_path, tmp_path)
    assert names(listing) == ["café\n☃.png"]
    assert losses(funnel) == {"its name is not UTF-8; rename it": (1, ["caf\udce9.png"])}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    assert losses(listed(tmp_path, tmp_path)[1]) == {"a folder that cannot be listed (Permission denied)": (1, ["locked/"])}


def test_a_relative_folder_gives_whole_paths(tmp_path, monkeypatch):
    picture(tmp_path / "set" / "a.png")
    monkeypatch.chdir(tmp_path)
    [entry] = listed("set", tmp_path)[0].entries
    assert (entry.name, entry.where) == ("a.png", str(tmp_path / "set" / "a.png"))


def test_a_file_url_is_the_folder_itself(tmp_path):
    picture(tmp_path / "set" / "a.png")
    assert [entry.where for entry in listed(f"file://{tmp_path}/set", tmp_path / "kept")[0].entries] == [str(tmp_path / "set" / "a.png")]
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("path", ["gone", "gone.csv", "pipe.csv", "a.png"])
def test_what_is_neither_folder_nor_list_is_refused(tmp_path, path):
    picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match=r"is not a folder, nor a file list \(.txt, .csv, .jsonl, .parquet\)"):
        listed(tmp_path / path, tmp_path)


class Shelf(Settings):
    count: int
    """How many."""


class Shelves(SourcePlugin[Settings, Shelf]):
    """Lists what the test has put there."""

    stage = Stage.LOAD

    def listing(self, settings, kind, folder, funnel):
        funnel.lose("readable", "is on another shelf", "far.png")
        entries = [Entry(file.name, str(file), {"caption": file.stem}) for file in sorted(folder.iterdir(), reverse=True)]
        return Listing(entries[: settings.count], (folder,))


def test_a_column_of_files_is_refused_where_no_list_has_one(tmp_path):
    picture(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"`file_column` is for file lists .* is a folder; leave it out"):
        listed(ImageTable(path=str(tmp_path), file_column="picture"), tmp_path)
    with pytest.raises(ValueError, match=r"stand in it: source = \{ ..., file_column = 'picture' \}"):
        ImageTable(source={"plugin": "rows"}, file_column="picture")


def test_a_plugin_s_files_are_sorted_checked_and_counted(tmp_path):
    outside = picture(tmp_path / "secret.png")
    for name in ("a.png", "b.png"):
        picture(tmp_path / "kept" / name)
    (tmp_path / "kept" / "c.png").symlink_to(outside)
    asked = ImageTable(source={"plugin": "shelves", "count": 3})
    listing, funnel = listed(asked, tmp_path / "kept", Shelves("shelves", Settings()))
    assert [(entry.name, entry.columns) for entry in listing.entries] == [("a.png", {"caption": "a"}), ("b.png", {"caption": "b"})]
    assert (funnel.total, funnel.passed("readable")) == (4, 2)
    assert losses(funnel)["is on another shelf"] == (1, ["far.png"])
    assert losses(funnel)["a link that leaves the dataset's folder is not followed"] == (1, ["c.png"])


def test_files_of_other_endings_are_told_by_one_note(tmp_path):
    for name in ("a.mkv", "b.mkv", "c.MP4", "a.txt", "a.json", "list.csv", ".hidden.mkv"):
        (tmp_path / name).touch()
    funnel = Funnel("photos")
    list_folder(tmp_path, ImageKind, funnel)
    assert len(funnel.notes) == 1
    assert funnel.notes[0].startswith("not looked at: 3 files that end in .mkv, .mp4; `kind` says what the files are")
    (tmp_path / "a.png").touch()
    funnel = Funnel("photos")
    list_folder(tmp_path, ImageKind, funnel)
    assert (funnel.notes, funnel.losses) == (["not looked at: 3 files that end in .mkv, .mp4"], ())

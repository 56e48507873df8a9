"""What headers and caption files told is remembered as long as the files stay as they are."""

import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from core.tests.data.support import picture
from tunesmith import InputError, Probe, Unreadable
from tunesmith.data.pictures import ImageKind
from tunesmith.listing.index import Index, NoText


class Counting(ImageKind):
    """Pictures whose headers are counted when they are read."""

    probing = "counting-1"
    read: list[str] = []  # noqa: RUF012

    @classmethod
    def probe(cls, file):
        cls.read.append(file.name)
        return ImageKind.probe(file)


@pytest.fixture(autouse=True)
def nothing_read():
    Counting.read = []


def probed(database, files, kind=Counting):
    with Index(database) as index:
        return [str(one) if isinstance(one, Unreadable) else one for one in index.probed(kind, [str(file) for file in files])]


def texts(database, files, homes=None):
    with Index(database) as index:
        return index.texts([str(file) for file in files], homes)


def test_a_second_start_reads_only_what_has_changed(tmp_path):
    files = [picture(tmp_path / f"{number}.png", (32 + number, 16)) for number in range(40)]
    database = tmp_path / "index.sqlite"
    first = probed(database, files)
    assert first == [Probe(32 + number, 16) for number in range(40)]
    assert sorted(Counting.read) == sorted(file.name for file in files)
    picture(tmp_path / "7.png", (99, 16))
    Counting.read = []
    second = probed(database, [*files[20:], *files[:20]])
    assert Counting.read == ["7.png"]
    assert second[27] == Probe(99, 16)
    assert [*second[20:27], *second[28:], *second[:20]] == [*first[:7], *first[8:]]


def test_every_part_of_a_probe_is_remembered_exactly(tmp_path):
    whole = Probe(1920, 1080, 301, 30000 / 1001, 10.043366666666667, 44100, 2)

    class Clips(Counting):
        probing = "clips-1"

        @classmethod
        def probe(cls, file):
            cls.read.append(file.name)
            return whole

    (tmp_path / "a.mp4").touch()
    assert [probed(tmp_path / "index.sqlite", [tmp_path / "a.mp4"], Clips) for _ in range(2)] == [[whole], [whole]]
    assert Clips.read == ["a.mp4"]


def test_broken_files_are_remembered_too_but_not_what_the_system_refused(tmp_path, monkeypatch):
    bad, gone = tmp_path / "bad.png", tmp_path / "gone.png"
    bad.write_bytes(b"<html>")
    database = tmp_path / "index.sqlite"
    first = probed(database, [bad, gone])
    assert first == [
        f"{bad}: not a JPEG, PNG or WebP picture (it begins with b'<html>')",
        f"{gone}: cannot be read (No such file or directory)",
    ]
    assert probed(database, [bad, gone]) == first
    assert Counting.read == ["bad.png"]

    locked = picture(tmp_path / "locked.png")
    with monkeypatch.context() as patched:

        def refuse(self, *_):
            raise PermissionError(13, "Permission denied")

        patched.setattr(Path, "open", refuse)
        assert probed(database, [locked]) == [f"{locked}: cannot be read (Permission denied)"]
    assert probed(database, [locked]) == [Probe(32, 32)]


def test_two_ways_of_reading_headers_do_not_meet(tmp_path):
    file = picture(tmp_path / "a.png")

    class Other(Counting):
        probing = "counting-2"

    probed(tmp_path / "index.sqlite", [file])
    probed(tmp_path / "index.sqlite", [file], Other)
    assert (Counting.read, Other.read) == (["a.png", "a.png"], ["a.png", "a.png"])


def test_a_replaced_file_of_the_same_size_and_time_is_read_again(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    assert texts(tmp_path / "index.sqlite", [file]) == ["one"]
    other = tmp_path / "b.txt"
    other.write_text("two")
    os.utime(other, ns=times)
    other.replace(file)
    assert texts(tmp_path / "index.sqlite", [file]) == ["two"]


def test_without_a_database_nothing_is_remembered(tmp_path):
    file = picture(tmp_path / "a.png")
    with Index(None) as index:
        assert [index.probed(Counting, [str(file)]) for _ in range(2)] == [[Probe(32, 32)]] * 2
    assert Counting.read == ["a.png", "a.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_texts_of_files_are_told_or_why_there_are_none(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    contents = {
        "a.txt": "\ufeffein Bär\r\n☃".encode(),
        "empty.txt": b"",
        "latin.txt": "Bär".encode("latin-1"),
        "utf16.txt": "abc".encode("utf-16-le"),
        "large.txt": b"x" * (2**20 + 1),
        "b.json": b"{}",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.txt")
    (tmp_path / "outside.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "inner.txt").symlink_to("a.txt")
    (folder / "round.txt").symlink_to("round.txt")
    names = [*contents, "pipe.txt", "link.txt", "inner.txt", "round.txt", "gone.json"]
    expected = [
        "ein Bär\r\n☃",
        "",
        NoText("the .txt file is not UTF-8"),
        NoText("the .txt file holds NUL characters, so it is not UTF-8 text"),
        NoText("the .txt file is larger than 1 MiB, which is no caption"),
        "{}",
        NoText("what has the name of the .txt file is a folder, pipe or device"),
        NoText("its .txt file is a link that leaves the dataset's folder"),
        "ein Bär\r\n☃",
        NoText("the .txt file cannot be read (Too many levels of symbolic links)"),
        NoText("no .json file beside it", missing=True),
    ]
    for _ in range(2):
        assert texts(tmp_path / "index.sqlite", [folder / name for name in names], [folder]) == expected


def test_texts_are_read_once(tmp_path, monkeypatch):
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    for file in files[:2]:
        file.write_text(file.stem)
    assert texts(tmp_path / "index.sqlite", files)[:2] == ["0", "1"]
    files[2].write_text("came later")
    read = []
    whole = Path.read_bytes

    def noted(self):
        read.append(self.name)
        return whole(self)

    monkeypatch.setattr(Path, "read_bytes", noted)
    assert texts(tmp_path / "index.sqlite", files) == ["0", "1", "came later"]
    assert read == ["2.txt"]


def test_folders_whose_names_are_not_text_and_times_beyond_any_integer_are_remembered(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    files = [picture(folder / "a.png"), picture(folder / "☃.png")]
    os.utime(files[0], (2**33, 2**33))
    for _ in range(2):
        assert probed(tmp_path / "index.sqlite", files) == [Probe(32, 32)] * 2
    assert sorted(Counting.read) == ["a.png", "☃.png"]


def test_what_another_version_has_written_is_read_again(tmp_path):
    file = picture(tmp_path / "a.png")
    database = tmp_path / "index.sqlite"
    probed(database, [file])
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE files SET value = '[32, 32]'")
    assert probed(database, [file]) == [Probe(32, 32)]
    assert Counting.read == ["a.png", "a.png"]


def test_threads_may_share_an_index_and_processes_a_file(tmp_path):
    files = [picture(tmp_path / f"{number}.png", (16 + number, 16)) for number in range(30)]
    found = []
    with Index(tmp_path / "index.sqlite") as one, Index(tmp_path / "index.sqlite") as other:
        jobs = [
            threading.Thread(target=lambda i=i: found.append(i.probed(Counting, list(map(str, files))))) for i in (one, one, other, other)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
    assert found == [[Probe(16 + number, 16) for number in range(30)]] * 4


def test_a_damaged_index_is_told_with_the_remedy(tmp_path):
    (tmp_path / "index.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match=r"is damaged.*remove it, and it is made anew"):
        Index(tmp_path / "index.sqlite")


def test_a_mistake_of_a_kind_names_the_file_that_it_met(tmp_path):
    class Broken(Counting):
        probing = "broken-1"

        @classmethod
        def probe(cls, file):
            raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake") as caught:
        probed(None, [picture(tmp_path / "a.png", (32, 16))], Broken)
    assert caught.value.__notes__ == [f"in probe of plugin 'broken-1', with {tmp_path / 'a.png'}"]


def test_a_text_edited_with_its_size_and_time_kept_is_read_again(tmp_path):
    file = tmp_path / "a.txt"
    with Index(tmp_path / "index.sqlite") as index:
        for content in ("one", "two"):
            file.write_text(content)
            os.utime(file, ns=(1, 1))
            assert index.texts([str(file)]) == [content]
            time.sleep(0.02)  # longer than the clock of a file system ticks

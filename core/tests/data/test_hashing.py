"""Content hashes: right, remembered, and read again when a file changes."""

import hashlib
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tunesmith import InputError
from tunesmith.data.hashing import FileHashes


@pytest.fixture
def hashes(tmp_path):
    with FileHashes(tmp_path / "cache" / "files.sqlite") as made:
        yield made


def opened(monkeypatch):
    """Names of the files that are opened from now on."""
    names = []
    original = Path.open

    def remember(self, *args, **kwargs):
        names.append(self.name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", remember)
    return names


def test_the_hash_is_that_of_the_content(tmp_path, hashes):
    (tmp_path / "a").write_bytes(b"content")
    assert hashes.of(tmp_path / "a") == hashlib.blake2b(b"content", digest_size=20).hexdigest()


def test_a_file_is_read_once_even_by_another_process_later(tmp_path, hashes, monkeypatch):
    (tmp_path / "a").write_bytes(b"content")
    names = opened(monkeypatch)
    first = hashes.of(tmp_path / "a")
    with FileHashes(hashes.database) as later:
        assert later.of(tmp_path / "a") == first
    assert names == ["a"]


def test_a_change_of_size_time_or_inode_is_noticed(tmp_path, hashes):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    first = hashes.of(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(2, 2))
    second = hashes.of(file)
    (tmp_path / "b").write_bytes(b"six")
    os.utime(tmp_path / "b", ns=(2, 2))
    os.replace(tmp_path / "b", file)
    assert len({first, second, hashes.of(file)}) == 3


def test_a_file_of_the_hub_cache_is_known_by_its_blob_and_never_read(tmp_path, hashes, monkeypatch):
    repository = tmp_path / "models--a--b"
    blob = repository / "blobs" / ("5" * 64)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"weights")
    link = repository / "snapshots" / "main" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    names = opened(monkeypatch)
    assert hashes.of(link) == "hub-" + "5" * 64
    assert names == []


def test_a_folder_that_is_merely_called_blobs_is_read(tmp_path, hashes):
    file = tmp_path / "blobs" / ("5" * 64)
    file.parent.mkdir()
    file.write_bytes(b"mine")
    assert hashes.of(file) == hashlib.blake2b(b"mine", digest_size=20).hexdigest()


def test_a_combined_hash_tells_names_contents_and_paths_apart(tmp_path, hashes):
    folders = {
        "a": {"x": "1", "s/y": "2"},
        "same": {"x": "1", "s/y": "2"},
        "renamed": {"x": "1", "s/z": "2"},
        "b": {"x": "2", "s/y": "1"},
    }
    for folder, files in folders.items():
        for name, content in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(content)
    a, same, renamed, b = (hashes.combined([tmp_path / folder]) for folder in ("a", "same", "renamed", "b"))
    assert a == same
    assert len({a, renamed, b, hashes.combined([tmp_path / "a", tmp_path / "b"]), hashes.combined([tmp_path / "a" / "x"])}) == 5


def test_a_missing_path_is_the_users_matter(tmp_path, hashes):
    with pytest.raises(InputError, match="gone is not there"):
        hashes.combined([tmp_path / "gone"])


def test_a_damaged_memory_is_told_with_the_remedy(tmp_path):
    (tmp_path / "files.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match=r"cache_dir.*files.sqlite is damaged.*remove it"):
        FileHashes(tmp_path / "files.sqlite")


def test_many_files_are_looked_up_together_and_only_new_and_changed_ones_are_read(tmp_path, hashes, monkeypatch):
    files = [tmp_path / "set" / f"{number}" for number in range(700)]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        file.write_bytes(str(number).encode())
    expected = {file: hashlib.blake2b(str(number).encode(), digest_size=20).hexdigest() for number, file in enumerate(files)}
    assert dict(hashes.of_many(files)) == expected
    files[5].write_bytes(b"changed")
    files[6].unlink()
    (tmp_path / "set" / "link").symlink_to("7")
    statements: list[str] = []
    hashes._connection.set_trace_callback(statements.append)
    names = opened(monkeypatch)
    asked: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        found = dict(hashes.of_many([*files, tmp_path / "set" / "link"], pool, lambda file: asked.append(file.name)))
    assert names == asked == ["5"]
    assert isinstance(found[files[6]], FileNotFoundError)
    assert found[tmp_path / "set" / "link"] == expected[files[7]]
    assert found[files[5]] == hashlib.blake2b(b"changed", digest_size=20).hexdigest()
    assert {file: found[file] for file in files[10:]} == {file: expected[file] for file in files[10:]}
    assert len(statements) <= 5


def test_what_was_hashed_before_a_reader_breaks_off_is_remembered(tmp_path, hashes, monkeypatch):
    files = [tmp_path / str(number) for number in range(4)]
    for file in files:
        file.write_bytes(b"x")
    reading = hashes.of_many(files)
    for _ in range(2):
        next(reading)
    reading.close()
    names = opened(monkeypatch)
    assert len(dict(hashes.of_many(files))) == 4
    assert names == ["2", "3"]


def test_an_edit_that_keeps_size_and_time_is_noticed(tmp_path, hashes):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    os.utime(file, ns=(1, 1))
    hashes.of(file)
    time.sleep(0.02)  # longer than the clock of a file system ticks
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert hashes.of(file) == hashlib.blake2b(b"two", digest_size=20).hexdigest()


def test_a_database_of_older_hashes_still_opens(tmp_path):
    with sqlite3.connect(tmp_path / "old.sqlite") as old:
        old.execute("CREATE TABLE files (path TEXT PRIMARY KEY, size INT, mtime_ns INT, inode INT, hash TEXT) WITHOUT ROWID")
    old.close()
    (tmp_path / "a").write_bytes(b"content")
    with FileHashes(tmp_path / "old.sqlite") as hashes:
        assert hashes.of(tmp_path / "a") == hashlib.blake2b(b"content", digest_size=20).hexdigest()

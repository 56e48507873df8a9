"""`tune cache`: what is there and who uses it, what is damaged, and what goes when it is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from core.tests.data.support import FIELDS, CountingRun, ordered, pictures
from tunesmith import InputError
from tunesmith.cache import upkeep
from tunesmith.cache.disk import Cache
from tunesmith.cache.shards import Shards
from tunesmith.cache.users import User
from tunesmith.cli.app import main
from tunesmith.encoding.fill import fill


@pytest.fixture
def tune(monkeypatch, capsys, tmp_path):
    """Run `tune` in this process, in a folder of its own; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def tune(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tune", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return tune


def key(name: object) -> str:
    return hashlib.blake2b(str(name).encode(), digest_size=20).hexdigest()


def value(name: int) -> torch.Tensor:
    return torch.randn(50, generator=torch.Generator().manual_seed(name))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A cache of two shards: entries 0 to 9 and 10 to 19; kept.toml uses 0 to 4, gone.toml 3 to 19."""
    folder: Path = tmp_path / "cache"
    for numbers in (range(10), range(10, 20)):
        with Cache(folder, compression="none") as cache:
            for number in numbers:
                cache.put(key(number), value(number), "latents" if number % 2 else "prompt")
    (tmp_path / "kept.toml").write_text("")
    with Cache(folder) as cache:
        cache.use(User(tmp_path / "kept.toml", ("run.seed=1",)).text, 0, [key(number) for number in range(5)])
        cache.use(User(tmp_path / "gone.toml").text, 0, [key(number) for number in range(3, 10)])
        cache.use(User(tmp_path / "gone.toml").text, 1, [key(number) for number in range(10, 25)])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("shard-*.bin"))}


def present(folder: Path) -> set[int]:
    """The entries that are there, which are what they were."""
    with Cache(folder) as cache:
        found = cache.get_many(key(number) for number in range(25))
        assert cache.damaged == 0
    numbers = {number for number in range(25) if key(number) in found}
    assert all(torch.equal(found[key(number)], value(number)) for number in numbers)
    return numbers


def test_ls_shows_sizes_by_field_and_by_config(tune, folder, tmp_path):
    code, out, _ = tune("cache", "ls", "--json")
    found = json.loads(out)
    size = sum(len(content) for content in contents(folder).values())
    assert code == 0
    assert found["total"] == {"entries": 20, "bytes": size}
    assert found["fields"] == {name: {"entries": 10, "bytes": size // 2} for name in ("latents", "prompt")}
    gone, kept = found["uses"]
    assert (kept["config"], kept["overrides"], kept["exists"], kept["entries"], kept["lacks"]) == (
        str(tmp_path / "kept.toml"),
        ["run.seed=1"],
        True,
        5,
        0,
    )
    assert (gone["config"], gone["exists"], gone["entries"], gone["lacks"]) == (str(tmp_path / "gone.toml"), False, 17, 5)
    assert (found["unused"]["entries"], found["damaged"]["entries"], found["waste"], found["in_use_by"]) == (15, 0, 0, [])
    code, out, _ = tune("cache", "ls", "--dir", str(folder))
    assert code == 0
    assert "cache: 20 entries, " in out
    assert "used by" in out
    assert "kept.toml --set run.seed=1: 5 entries" in out
    assert "gone.toml (the config is gone): 17 entries" in out
    assert "unused: 15 entries" in out


def test_ls_counts_what_its_files_are_too_short_for(tune, folder):
    first, second = sorted(folder.glob("shard-*.bin"))
    first.unlink()
    os.truncate(second, second.stat().st_size - 1)
    found = json.loads(tune("cache", "ls", "--json")[1])
    assert found["damaged"]["entries"] == 11


def test_verify_reads_every_byte_and_names_what_is_damaged(tune, folder):
    assert tune("cache", "verify")[:2] == (0, "0 of 20 entries are damaged\n")
    shard = sorted(folder.glob("shard-*.bin"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    code, out, _ = tune("cache", "verify")
    assert code == 1
    assert f"in {shard.name} at byte" in out
    assert "1 of 20 entries are damaged; --forget lets the next run make them anew" in out
    found = json.loads(tune("cache", "verify", "--json")[1])
    assert (found["entries"], found["forgotten"], len(found["damaged"])) == (20, False, 1)
    assert len(present_before_forgetting(folder)) == 20
    assert tune("cache", "verify", "--forget")[0] == 0
    assert tune("cache", "verify")[1] == "0 of 19 entries are damaged\n"
    assert len(present(folder)) == 19


def present_before_forgetting(folder: Path) -> set[str]:
    with Cache(folder) as cache:
        return cache.contains_many(key(number) for number in range(25))


def test_prune_tells_what_would_go_and_changes_nothing(tune, folder):
    before = contents(folder)
    code, out, _ = tune("cache", "prune")
    assert code == 0
    assert "the config is gone: " in out
    assert "15 entries, " in out
    assert "nothing was removed; add --yes" in out
    assert contents(folder) == before
    assert present(folder) == set(range(20))


def test_prune_removes_what_no_config_uses_and_frees_what_it_said(tune, folder):
    said = json.loads(tune("cache", "prune", "--json")[1])
    before = sum(map(len, contents(folder).values()))
    done = json.loads(tune("cache", "prune", "--yes", "--json")[1])
    assert {**said, "removed": True} == done
    assert (len(done["deleted"]), len(done["rewritten"]), done["unused"]["entries"]) == (1, 1, 15)
    assert before - sum(map(len, contents(folder).values())) == done["freed"] == done["unused"]["bytes"]
    assert present(folder) == set(range(5))
    assert tune("cache", "prune", "--yes")[1] == "nothing to remove: every entry is used by a config that exists\n"
    found = json.loads(tune("cache", "ls", "--json")[1])
    assert [use["entries"] for use in found["uses"]] == [5]


def test_prune_removes_bytes_and_locks_that_dead_writers_left(tune, folder, tmp_path):
    (tmp_path / "gone.toml").write_text("")
    shard = sorted(folder.glob("shard-*.bin"))[0]
    with shard.open("ab") as torn:
        torn.write(b"torn")
    (folder / "shard-dead-0001.bin").write_bytes(b"never committed")
    (folder / "writer-dead.lock").write_bytes(b"")
    (folder / "mine.txt").write_text("not the cache's")
    done = json.loads(tune("cache", "prune", "--yes", "--json")[1])
    assert (done["unused"]["entries"], done["deleted"], done["freed"]) == (0, ["shard-dead-0001.bin"], 19)
    assert present(folder) == set(range(20))
    assert (folder / "mine.txt").exists()
    assert not list(folder.glob("writer-*"))


def test_a_cache_in_use_is_not_pruned_and_one_being_pruned_is_not_used(tune, folder, monkeypatch):
    with Cache(folder) as cache:
        cache.claim_many([key("new")])
        code, _, err = tune("cache", "prune", "--yes")
        assert code == 2
        assert f"is in use by process {os.getpid()} on " in err
        assert "nothing was removed" in err
        assert tune("cache", "prune")[0] == 0
    assert present(folder) == set(range(20))

    def meanwhile(*arguments: object) -> None:
        with pytest.raises(InputError, match="is being pruned by another process"):
            Cache(folder)

    monkeypatch.setattr(upkeep, "_compact", meanwhile)
    assert tune("cache", "prune", "--yes")[0] == 0


@pytest.mark.parametrize("moment", ["append", "unlink"])
def test_a_pruning_that_is_interrupted_loses_nothing_that_is_used(tune, folder, monkeypatch, moment):
    calls = []

    def fail(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "append":
            patch.setattr(Shards, "append", fail)
        else:
            patch.setattr(Path, "unlink", fail)
        with pytest.raises(KeyboardInterrupt):
            upkeep.prune(folder, remove=True)
    assert calls
    assert present(folder) == set(range(5))
    upkeep.prune(folder, remove=True)
    assert present(folder) == set(range(5))
    assert upkeep.overview(folder).waste == 0


@pytest.mark.parametrize("command", ["ls", "verify", "prune"])
def test_a_folder_without_a_cache_is_named_and_stays_without(tune, tmp_path, command):
    (tmp_path / "empty").mkdir()
    code, _, err = tune("cache", command, "--dir", str(tmp_path / "empty"))
    assert code == 2
    assert f"there is no cache in {tmp_path / 'empty'}; name its folder with --dir, or a config" in err
    assert not list((tmp_path / "empty").iterdir())
    assert "not both" in tune("cache", command, "a.toml", "--dir", "cache")[2]


def test_a_config_names_its_cache(tune, toy, folder, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('[run]\nsteps = 1\ncache_dir = "cache"\n[model]\nfamily = "toyfamily"\n[[datasets]]\npath = "a"\n')
    assert json.loads(tune("cache", "ls", str(config), "--json")[1])["total"]["entries"] == 20


def test_help_of_the_cache_imports_nothing_heavy():
    code = "import sys; from tunesmith.cli.app import app; sys.exit(', '.join({'torch', 'numpy', 'zstandard'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_filled_cache_knows_what_its_config_uses_and_prunes_what_it_used_before(tune, tmp_path):
    order = ordered(pictures(tmp_path / "set", 5))
    run: Any = CountingRun(tmp_path)
    config = tmp_path / "c.toml"
    config.write_text("")
    other = tmp_path / "d.toml"
    other.write_text("")
    captions = order.all_captions()
    with Cache(tmp_path / "cache") as cache:
        fill(run, cache, FIELDS, order, captions, run.progress, User(config).text)
        fill(run, cache, FIELDS, order, captions[:3], run.progress, User(other).text)
    assert [use.amount.entries for use in upkeep.overview(tmp_path / "cache").uses] == [20, 16]
    config.unlink()
    assert upkeep.prune(tmp_path / "cache", remove=True).unused.entries == 4
    run.encoded.clear()
    with Cache(tmp_path / "cache") as cache:
        fill(run, cache, FIELDS, order, captions[:3], run.progress, User(other).text)
    assert run.encoded == {}

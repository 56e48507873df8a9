"""A cache that is shared, torn, damaged or outdated: the run is the undisturbed one, or one message says what to do."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.processes import start
from tests.runs.conftest import Result, config_text
from tunesmith import InputError
from tunesmith.cache import disk
from tunesmith.hooks import HookCaller

SHORT = ("validation.at_start=false", "validation.at_end=false", "run.steps=4")


@pytest.fixture
def data(tmp_path: Path, pictures: Path) -> Path:
    """Pictures of one's own, to be edited."""
    return Path(shutil.copytree(pictures, tmp_path / "data"))


@pytest.fixture
def checkpoint(tmp_path: Path, twin: Path) -> Path:
    """A checkpoint of one's own, to be edited."""
    return Path(shutil.copytree(twin, tmp_path / "checkpoint"))


@contextmanager
def encoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Counts the samples and captions that are encoded meanwhile."""
    counted = {"latents": 0, "prompt_embeds": 0}
    encode = HookCaller.encode_batch

    def watched(self, run, batch):
        for key in batch.wanted:
            counted[key] += len(batch)
        return encode(self, run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(HookCaller, "encode_batch", watched)
        yield counted


def die_while_writing() -> None:
    """Have this process killed when it has committed three groups of two entries, with a part of the next entry in the shard."""
    put, values = disk.Cache.put, []

    def deadly(self: disk.Cache, key: str, value: Tensor, field: str = "") -> None:
        put(self, key, value, field)
        values.append(key)
        if len(values) == 7:
            assert self._shards._file is not None
            self._shards._file.write(b"torn")
            self._shards._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    disk.GROUP_ENTRIES = 2
    disk.Cache.put = deadly  # type: ignore[method-assign]


def in_cache(name: str) -> str:
    return f"run.cache_dir='{name}'"


def shards(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("shard-*.bin"))


def flip(file: Path, every: int, keep_time: bool = False) -> None:
    """Change one byte in so many."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    for at in range(every // 2, len(content), every):
        content[at] ^= 0xFF
    file.write_bytes(content)
    if keep_time:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def same_losses(*results: Result, rel: float = 0.0) -> None:
    first, *others = [result.losses for result in results]
    assert sorted(first) == [1, 2, 3, 4]
    assert all(losses == pytest.approx(first, rel=rel, abs=0) for losses in others)


def test_two_runs_at_once_on_one_cache_end_as_alone(train, tmp_path, twin, pictures):
    alone = train("alone", "", *SHORT, in_cache("apart"))
    at_work = []
    for name in ("left", "right"):
        (tmp_path / f"{name}.toml").write_text(config_text(twin, pictures))
        at_work.append(start(tmp_path, "run", f"{name}.toml", sets=SHORT))
    for done in [one.wait() for one in at_work]:
        assert done.returncode == 0, done.stderr
    same_losses(alone, Result(tmp_path / "runs" / "left"), Result(tmp_path / "runs" / "right"))


def test_a_killed_writer_costs_only_what_it_had_not_committed(train, tmp_path, twin, pictures, monkeypatch):
    with encoding(monkeypatch) as everything:
        alone = train("alone", "", *SHORT, in_cache("apart"))
    (tmp_path / "killed.toml").write_text(config_text(twin, pictures))
    died = start(tmp_path, "run", "killed.toml", sets=SHORT, before=die_while_writing).wait()
    assert died.returncode == -signal.SIGKILL, died.stderr
    with encoding(monkeypatch) as rest:
        resumed = train("killed", "", *SHORT)
    assert sum(rest.values()) == sum(everything.values()) - 6
    same_losses(alone, resumed)


@pytest.mark.parametrize("fault", ["flipped", "cut", "empty", "gone"])
def test_a_damaged_shard_is_remade_once_and_said(train, tmp_path, monkeypatch, capfd, fault):
    with encoding(monkeypatch) as everything:
        first = train("first", "", *SHORT)
    [shard] = shards(tmp_path)
    size = shard.stat().st_size
    if fault == "flipped":
        flip(shard, 200)
    elif fault == "gone":
        shard.unlink()
    else:
        os.truncate(shard, size // 2 if fault == "cut" else 0)
    told: list[str] = []
    monkeypatch.setattr("tunesmith.progress.Progress.message", lambda self, text: told.append(text))
    with encoding(monkeypatch) as again:
        second = train("second", "", *SHORT)
    said = [text for text in told if "are damaged or gone and are made anew" in text]
    assert len(said) == 1
    assert shard.name in said[0]
    assert sum(again.values()) == sum(everything.values()) if fault != "cut" else 0 < sum(again.values()) < sum(everything.values())
    told.clear()
    with encoding(monkeypatch) as nothing:
        third = train("third", "", *SHORT)
    assert sum(nothing.values()) == 0
    assert [text for text in told if "damaged" in text] == []
    same_losses(first, second, third)


def test_a_shard_that_rots_unnoticed_is_remade_in_the_middle_of_the_run_and_said(train, tmp_path, monkeypatch):
    with encoding(monkeypatch) as everything:
        first = train("first", "", *SHORT)
    [shard] = shards(tmp_path)
    flip(shard, 200, keep_time=True)  # a disk's own fault leaves the time as it was
    told: list[str] = []
    monkeypatch.setattr("tunesmith.progress.Progress.message", lambda self, text: told.append(text))
    with encoding(monkeypatch) as again:
        second = train("second", "", *SHORT)
    assert 0 < again["latents"] <= everything["latents"]
    assert len([text for text in told if shard.name in text]) == 1
    assert [text for text in told if "cache entries again that were damaged or gone" in text]
    with encoding(monkeypatch) as rest:  # what the second run never drew
        third = train("third", "", *SHORT)
    assert again["latents"] + rest["latents"] <= everything["latents"]
    same_losses(first, second, third, rel=1e-5)  # in other batches the encoder rounds differently


def test_a_cache_in_memory_leaves_no_entry_on_the_disk_and_trains_the_same(train, tmp_path):
    on_disk = train("disk", "", *SHORT)
    in_memory = train("memory", "", *SHORT, "run.cache='memory'", in_cache("apart"))
    same_losses(on_disk, in_memory)
    left = {file.name for file in (tmp_path / "apart").rglob("*")}
    assert not [name for name in left if "shard" in name or "index" in name or "lock" in name], left


def test_an_encoder_whose_weights_changed_makes_new_latents_and_no_new_prompts(train, checkpoint, monkeypatch):
    path = f"model.path='{checkpoint}'"
    with encoding(monkeypatch) as everything:
        before = train("before", "", *SHORT, path)
    [weights] = (checkpoint / "vae").glob("*.safetensors")
    save_file({name: value * 1.05 for name, value in load_file(weights).items()}, weights)
    with encoding(monkeypatch) as counted:
        after = train("after", "", *SHORT, path)
    assert counted == {"latents": everything["latents"], "prompt_embeds": 0}
    same_losses(after, train("fresh", "", *SHORT, path, in_cache("fresh")))
    assert after.losses != before.losses


def test_a_picture_and_a_caption_edited_between_two_starts_are_encoded_again_and_nothing_else_is(train, data, monkeypatch):
    path = f"datasets.0.path='{data}'"
    before = train("before", "", *SHORT, path)
    with Image.open(data / "3.png") as opened:
        Image.eval(opened, lambda value: 255 - value).save(data / "3.png")
    (data / "5.txt").write_text("another caption\n")
    with encoding(monkeypatch) as counted:
        after = train("after", "", *SHORT, path)
    assert counted == {"latents": 1, "prompt_embeds": 1}
    same_losses(after, train("fresh", "", *SHORT, path, in_cache("fresh")), rel=1e-5)  # alone in its batch the encoder rounds differently
    assert after.losses != before.losses


@pytest.mark.parametrize("name", ["index.sqlite", "files.sqlite"])
@pytest.mark.parametrize("fault", ["garbage", "cut"])
def test_a_damaged_index_is_named_with_the_remedy_which_works(train, tmp_path, name, fault):
    first = train("first", "", *SHORT)
    index = tmp_path / "cache" / name
    if fault == "garbage":
        index.write_bytes(b"no database " * 1000)
    else:
        os.truncate(index, index.stat().st_size // 2)
    with pytest.raises(InputError, match=rf"cache_dir: .*{name} is damaged .*; remove it, and it is made anew"):
        train("second", "", *SHORT)
    index.unlink()
    same_losses(first, train("third", "", *SHORT))


def test_an_empty_index_is_filled_again(train, tmp_path):
    first = train("first", "", *SHORT)
    os.truncate(tmp_path / "cache" / "index.sqlite", 0)
    same_losses(first, train("second", "", *SHORT))


def test_a_cache_folder_that_cannot_be_made_is_named(train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"\[run\] cache_dir: .*file/cache cannot be made \(Not a directory\); choose another folder"):
        train("first", "", *SHORT, in_cache("file/cache"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_folder_without_permission_is_named(train, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(InputError, match=r"\[run\] cache_dir: .*closed.*choose"):
        train("first", "", *SHORT, in_cache("closed"))

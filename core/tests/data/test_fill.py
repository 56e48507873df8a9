"""Filling a cache by several processes, killed ones too: everything once, and in the end complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from core.tests.data import filling
from core.tests.data.support import FIELDS, CountingRun, Quiet, ordered, picture, pictures
from tunesmith import Caption
from tunesmith.cache.disk import Cache
from tunesmith.cache.index import open_index
from tunesmith.cache.store import MemoryCache, caption_key
from tunesmith.encoding.fill import fill
from tunesmith.encoding.watch import Watch

ROOT = Path(__file__).resolve().parents[3]
KILLS = int(os.environ.get("TUNESMITH_KILLS", "6"))
"""How often a filling process is killed; more takes longer."""


def counting(folder: Path, batch_size: int = 2) -> Any:
    return CountingRun(folder, batch_size)


def filled_by(folder: Path, *arguments: str) -> str:
    """What is told by processes that fill the cache, see `filling`."""
    command = [sys.executable, "-m", "core.tests.data.filling", str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=True).stdout


def entries(folder: Path) -> dict[str, bytes]:
    """Every entry of a cache."""
    connection = open_index(folder)
    keys = [key for (key,) in connection.execute("SELECT key FROM entries")]
    assert connection.execute("SELECT COUNT(*) FROM claims").fetchone() == (0,)
    connection.close()
    with Cache(folder) as cache:
        found = cache.get_many(keys)
        assert found.keys() == set(keys)
    return {key: bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist()) for key, value in found.items()}


def encoded(folder: Path, where: str = "cache") -> list[tuple[str, ...]]:
    """(process, field, name) of everything that was encoded."""
    return [tuple(line.split(" ", 2)) for line in (folder / f"{where}.log").read_text().splitlines()]


def test_two_processes_share_the_work_and_encode_nothing_twice(tmp_path):
    pictures(tmp_path / "set", 20)
    filled_by(tmp_path, "share", "2", "0.05")
    made = encoded(tmp_path)
    times = Counter((field, name) for _, field, name in made)
    assert set(times.values()) == {1}
    assert Counter(field for field, _ in times) == {field.key: 20 for field in FIELDS}
    shares = Counter(process for process, _, _ in made)
    assert len(shares) == 2
    assert min(shares.values()) >= 0.2 * len(made)
    filling.fill_once(tmp_path, 0, "alone")
    assert entries(tmp_path / "cache") == entries(tmp_path / "alone")
    assert not list((tmp_path / "cache").glob("writer-*.lock"))


def test_killed_at_random_moments_a_cache_is_completed_and_equals_the_undisturbed_one(tmp_path):
    pictures(tmp_path / "set", 10 * KILLS)
    assert int(filled_by(tmp_path, "kill", str(KILLS), "0.02")) == KILLS
    begun = encoded(tmp_path)
    assert len({process for process, _, _ in begun}) > 1
    filling.fill_once(tmp_path, 0)
    filling.fill_once(tmp_path, 0, "alone")
    assert entries(tmp_path / "cache") == entries(tmp_path / "alone")
    assert not list((tmp_path / "cache").glob("writer-*.lock"))


def test_what_a_killed_process_had_claimed_is_taken_over_and_what_a_living_one_has_is_waited_for(tmp_path):
    pictures(tmp_path / "set", 3)
    run, order, progress = counting(tmp_path), ordered(tmp_path / "set"), Quiet()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "cache"), caption_key(FIELDS[3], Caption("01"))], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "claimed\n"
    with Cache(tmp_path / "cache") as cache:
        killer = subprocess.Popen([sys.executable, "-c", f"import time, os; time.sleep(1.5); os.kill({holder.pid}, {signal.SIGKILL})"])
        began = time.monotonic()
        fill(run, cache, FIELDS, order, order.all_captions(), progress)
        assert time.monotonic() - began > 1
        killer.wait()
        holder.communicate()
    assert progress.messages == [
        f"waiting for process {holder.pid} on {os.uname().nodename}, which is encoding captions for the same cache"
    ]
    assert run.encoded == {"latents": 3, "edges": 3, "prompt": 3, "length": 3}


HOLDER = """
import sys, time
from pathlib import Path
from tunesmith.cache.disk import Cache

cache = Cache(Path(sys.argv[1]))
assert cache.claim_many([sys.argv[2]]) == {sys.argv[2]}
print("claimed", flush=True)
time.sleep(100)
"""


def test_files_with_the_same_content_are_encoded_once_and_both_dropped_if_they_are_broken(tmp_path):
    folder = pictures(tmp_path / "set", 4)
    (folder / "copy.png").write_bytes((folder / "02.png").read_bytes())
    whole = picture(folder / "broken.png", seed=9).read_bytes()
    for name in ("broken.png", "torn.png"):
        (folder / name).write_bytes(whole[: len(whole) // 2])
    run, order = counting(tmp_path), ordered(folder)
    with Cache(tmp_path / "cache") as cache:
        fill(run, cache, FIELDS[:1], order, (), run.progress)
    assert run.encoded == {"latents": 4}
    dataset = order.datasets["set"]
    assert [sample.name for sample in dataset.samples] == ["00.png", "01.png", "02.png", "03.png", "copy.png"]
    assert sum(lost.count for lost in dataset.funnel.losses if lost.station == "readable") == 2


def test_a_cache_in_memory_holds_everything_and_writes_nothing(tmp_path):
    run, order = counting(tmp_path), ordered(pictures(tmp_path / "set", 3))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "sqlite" not in path.name}
    with MemoryCache() as cache:
        fill(run, cache, FIELDS, order, order.all_captions(), Quiet())
        fill(run, cache, FIELDS, order, order.all_captions(), Quiet())
        assert run.encoded == {"latents": 3, "edges": 3, "prompt": 3, "length": 3}
        key = caption_key(FIELDS[3], Caption("01"))
        found = cache.get(key)
        assert found is not None
        found += 100
        assert cache.get(key) == torch.tensor([2])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "sqlite" not in path.name} == before


def test_decoding_and_writing_go_on_beside_the_encoder(tmp_path, monkeypatch):
    """Twenty pictures that take 60 ms to decode and 60 ms to write, with an encoder of 60 ms each: one after the other 3.6 s."""
    run, order = counting(tmp_path, batch_size=1), ordered(pictures(tmp_path / "set", 20), batch_size=1)

    def slowed(call):
        def slow(*arguments):
            time.sleep(0.06)
            return call(*arguments)

        return slow

    dataset = order.datasets["set"]
    monkeypatch.setattr(dataset, "load", slowed(dataset.load))
    monkeypatch.setattr(run, "encode_batch", slowed(run.encode_batch))
    with Cache(tmp_path / "cache") as cache:
        monkeypatch.setattr(cache, "put_many", slowed(cache.put_many))
        began = time.monotonic()
        fill(run, cache, FIELDS[:1], order, (), Quiet())
        assert time.monotonic() - began < 3
    assert run.encoded == {"latents": 20}


def test_an_error_while_writing_stops_the_filling(tmp_path, monkeypatch):
    run, order = counting(tmp_path), ordered(pictures(tmp_path / "set", 2))
    with Cache(tmp_path / "cache") as cache:
        monkeypatch.setattr(cache, "put_many", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fill(run, cache, FIELDS, order, order.all_captions(), Quiet())


def test_what_is_stuck_is_named_again_and_again_and_what_goes_on_is_not():
    told: list[str] = []
    watch = Watch(told.append, patience=0.3)
    with watch.running():
        for number in range(10):
            watch.at(partial("decoding {}".format, number))
            time.sleep(0.02)
        watch.at(lambda: "decoding stuck.png")
        time.sleep(1)
        watch.at(None)
        time.sleep(0.2)
    assert told[:2] == ["still decoding stuck.png, for 0 seconds", "still decoding stuck.png, for 1 seconds"]
    assert len(told) <= 3

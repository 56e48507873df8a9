"""The loader: the batch of each position, read ahead or not, with a cache or without."""

import os
import threading
from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch

from core.tests.data.support import FIELDS, CountingRun, Quiet, ordered, picture, pictures
from tunesmith import Batch, Ragged, RunFailed
from tunesmith.cache.disk import Cache
from tunesmith.data.ahead import LOTS
from tunesmith.data.dataset import Dataset
from tunesmith.data.loader import LOT, Loader
from tunesmith.encoding.fill import fill


@pytest.fixture
def run(tmp_path):
    return CountingRun(tmp_path)


def same(one: Batch, other: Batch) -> bool:
    if (one.sources, one.captions, one.fields.keys()) != (other.sources, other.captions, other.fields.keys()):
        return False
    for key, value in one.fields.items():
        pair = other.fields[key]
        if isinstance(value, Ragged):
            assert isinstance(pair, Ragged)
            if not all(torch.equal(a, b) for a, b in zip(value.values, pair.values, strict=True)):
                return False
        elif isinstance(pair, Ragged) or not torch.equal(value, pair):
            return False
    return True


def loader(tmp_path, run, cached: bool, **settings) -> Loader:
    folder = tmp_path / "set"
    if not folder.exists():
        pictures(folder, 5)
        pictures(folder, 4, (64, 16), "wide")
    order = ordered(folder, cached=cached, crop="random", caption_dropout=0.3, **settings)
    cache = None
    if cached:
        cache = Cache(tmp_path / "cache")
        fill(run, cache, FIELDS, order, order.all_captions(), Quiet())
    return Loader(run, order, FIELDS, cache)


@pytest.mark.parametrize("cached", [True, False])
def test_batches_read_ahead_equal_direct_reads_from_any_start(tmp_path, run, cached):
    made = loader(tmp_path, run, cached)
    direct = [made.batch(position) for position in range(14)]
    for start in (0, 5):
        with made.batches(start) as batches:
            assert all(same(one, other) for one, other in zip(batches, direct[start:], strict=False))
    assert [batch.sources for batch in direct] == [made.order.batch(position) for position in range(14)]


def test_a_batch_from_the_cache_is_what_the_encoder_makes_of_it(tmp_path, run):
    cached = loader(tmp_path, run, cached=True)
    fresh = Loader(run, cached.order, FIELDS, None)
    for position in range(8):
        assert same(cached.batch(position), fresh.batch(position))


def test_the_fields_of_a_batch_are_stacked_and_ragged_ones_are_not_padded(tmp_path, run):
    batch = loader(tmp_path, run, cached=True).batch(0)
    assert batch.tensor("latents").shape == (2, 3)
    assert batch.tensor("edges").dtype == torch.bfloat16
    lengths = [len(source.caption.text) + 1 for source in batch.sources]
    assert [len(value) for value in batch.ragged("prompt").values] == lengths
    assert batch.pixels is None


def test_reading_from_the_cache_needs_neither_encoders_nor_files_again(tmp_path, run):
    made = loader(tmp_path, run, cached=True)
    for position in range(4 * made.order.batches_per_epoch):
        made.batch(position)
    run.encoded.clear()
    for file in (tmp_path / "set").iterdir():
        file.unlink()
    with made.batches(0) as batches:
        assert len(list(islice(batches, 9))) == 9
    assert run.encoded == {}


def test_an_error_of_the_reading_thread_is_raised_where_the_batch_is_taken(tmp_path, run):
    made = loader(tmp_path, run, cached=True)
    for file in (tmp_path / "set").iterdir():
        file.unlink()
    with made.batches(0) as batches, pytest.raises(RunFailed, match="cannot be read any more"):
        next(batches)


def harmed(made: Loader, run: Any, harm) -> tuple[Loader, list[str]]:
    """The loader of another start, after every shard was harmed as the disk does it: unnoticed."""
    assert isinstance(made.cache, Cache)
    made.cache.close()
    for shard in made.cache.folder.glob("shard-*.bin"):
        status = shard.stat()
        shard.write_bytes(harm(shard.read_bytes()))
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    told: list[str] = []
    run.encoded.clear()
    run.progress.messages.clear()
    return Loader(run, made.order, FIELDS, Cache(made.cache.folder, told.append)), told


def rotten(content: bytes) -> bytes:
    """Every entry with some wrong bytes."""
    return bytes(byte ^ 0xFF if index % 50 == 25 else byte for index, byte in enumerate(content))


def parts(made: Loader, positions: range) -> Counter[str]:
    """How many values of each field the batches at these positions are made of."""
    sources = [source for position in positions for source in made.order.batch(position)]
    samples = {(source.file, source.crop) for source in sources}
    captions = {source.caption for source in sources}
    return Counter({"latents": len(samples), "edges": len(samples), "prompt": len(captions), "length": len(captions)})


@pytest.mark.parametrize("ahead", [False, True])
def test_what_has_rotted_or_gone_is_encoded_again_once_field_by_field_and_said(tmp_path, run, ahead):
    whole = loader(tmp_path, run, cached=True)
    expected = [whole.batch(position) for position in range(12)]
    made, told = harmed(whole, run, rotten)
    if ahead:
        with made.batches(0) as batches:
            found = list(islice(batches, 12))
    else:
        found = [made.batch(position) for position in range(12)]
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert all(batch.wanted == frozenset() and batch.inputs == {} for batch in found)
    encoded = run.encoded.copy()
    assert encoded >= parts(made, range(12))
    assert encoded <= parts(made, range(12 + 2 * LOT))
    assert len(told) == 1
    assert "are damaged or gone and are made anew" in told[0]
    assert run.progress.messages
    assert all("cache entries again that were damaged or gone: of set:" in message for message in run.progress.messages)
    assert run.released == len(run.progress.messages) <= 12
    again = Loader(run, made.order, FIELDS, made.cache)
    assert all(same(again.batch(position), expected[position]) for position in range(12))
    assert run.encoded == encoded


def test_batches_that_were_read_ahead_are_repaired_together(tmp_path, run):
    whole = loader(tmp_path, run, cached=True)
    expected = [whole.batch(position) for position in range(3)]
    made, _ = harmed(whole, run, rotten)
    ready = [made.ready(position) for position in range(3)]
    assert all(batch.wanted == {"latents", "edges", "prompt", "length"} for batch in ready)
    found = [made.finished(batch) for batch in ready]
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert run.encoded == parts(made, range(3))
    assert (len(run.progress.messages), run.released) == (1, 1)


def test_only_the_field_that_is_damaged_is_encoded_again_and_captions_decode_nothing(tmp_path, run, monkeypatch):
    whole = loader(tmp_path, run, cached=True)
    expected = whole.batch(0)
    keys = {whole._key(FIELDS[2], source) for source in expected.sources}
    assert isinstance(whole.cache, Cache)
    whole.cache._connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys])
    run.encoded.clear()
    monkeypatch.setattr(Dataset, "load", lambda self, source, need: pytest.fail("decoded"))
    made = Loader(run, whole.order, FIELDS, whole.cache)
    assert same(made.batch(0), expected)
    assert run.encoded == {"prompt": len(keys)}


def test_a_lost_entry_whose_file_is_gone_stops_the_run_by_name(tmp_path, run):
    made, _ = harmed(loader(tmp_path, run, cached=True), run, lambda content: b"")
    for source in made.order.all_sources():
        run.file_hashes.of(source.file)
    hashes = {source.file: run.file_hashes.of(source.file) for source in made.order.all_sources()}
    made._contents.update(hashes)
    for file in hashes:
        file.unlink()
    with pytest.raises(RunFailed, match=r"no longer holds 'latents' of set:.*\.png, and it cannot be made again: .*put the file back"):
        made.batch(0)


def test_the_reading_thread_ends_with_the_block_however_it_is_left(tmp_path, run):
    made = loader(tmp_path, run, cached=True)
    before = threading.active_count()
    with made.batches(0) as batches:
        next(batches)

    def break_off() -> None:
        with made.batches(0) as batches:
            next(batches)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    with made.batches(0):
        pass
    assert threading.active_count() == before


def test_the_reading_thread_stays_a_few_batches_ahead_and_no_more(tmp_path, run, monkeypatch):
    made = loader(tmp_path, run, cached=True)
    read: list[int] = []
    batch = made.order.batch
    enough = threading.Event()

    def remember(position):
        read.append(position)
        if len(read) >= LOT * LOTS:
            enough.set()
        return batch(position)

    monkeypatch.setattr(made.order, "batch", remember)
    with made.batches(0):
        assert enough.wait(30)
        threading.Event().wait(0.2)
        assert read == list(range(LOT * LOTS))


def test_without_a_cache_encoding_happens_in_the_main_thread(tmp_path, run, monkeypatch):
    made = loader(tmp_path, run, cached=False)
    threads = set()
    encode_batch = run.encode_batch

    def remember(_, batch):
        threads.add(threading.current_thread())
        return encode_batch(_, batch)

    monkeypatch.setattr(run, "encode_batch", remember)
    with made.batches(0) as batches:
        list(islice(batches, 3))
    assert threads == {threading.current_thread()}


def test_without_a_cache_an_unreadable_picture_is_replaced_by_the_next_of_its_bucket_and_named_once(tmp_path, run):
    folder = pictures(tmp_path / "set", 4)
    whole = picture(folder / "01.png", seed=7).read_bytes()
    (folder / "01.png").write_bytes(whole[: len(whole) // 2])
    told: list[str] = []
    order = ordered(folder, cached=False)
    first = Loader(run, order, FIELDS, None, lambda source, reason: told.append(f"{source.file.name}: {reason}"))
    names = [[source.file.name for source in first.batch(position).sources] for position in range(8)]
    for position, drawn in enumerate(names):
        expected = [source.file.name for source in order.batch(position)]
        assert drawn == [name.replace("01", "02") for name in expected]
    assert len(told) == 1
    assert told[0].startswith("01.png: cannot be decoded")
    again = Loader(run, order, FIELDS, None)
    assert [source.file.name for source in again.batch(5).sources] == names[5]


def test_unreadable_pictures_are_told_in_the_main_thread(tmp_path, run):
    folder = pictures(tmp_path / "set", 4)
    (folder / "01.png").write_bytes((folder / "01.png").read_bytes()[:60])
    threads = []
    made = Loader(run, ordered(folder, cached=False), FIELDS, None, lambda source, reason: threads.append(threading.current_thread()))
    with made.batches(0) as batches:
        list(islice(batches, 4))
    assert threads == [threading.current_thread()]


def test_without_a_cache_a_bucket_without_any_readable_picture_stops_the_run(tmp_path, run):
    folder = pictures(tmp_path / "set", 2)
    order = ordered(folder, cached=False)
    for file in folder.iterdir():
        file.write_bytes(b"")
    with pytest.raises(RunFailed, match=r"no sample of the bucket 32x32 can be decoded.*the file is empty"):
        Loader(run, order, FIELDS, None).batch(0)


def test_a_file_that_is_gone_before_its_first_use_stops_the_run_by_name(tmp_path, run):
    made = loader(tmp_path, run, cached=True)
    for file in (tmp_path / "set").iterdir():
        file.unlink()
    with pytest.raises(RunFailed, match=r"set/.*\.png cannot be read any more.*start again"):
        made.batch(0)


def test_once_all_is_in_memory_the_thread_rests_and_the_batches_stay_the_same(tmp_path, run):
    made = loader(tmp_path, run, cached=True)
    epoch = made.order.batches_per_epoch
    direct = [made.batch(position) for position in range(6 * epoch)]
    again = loader(tmp_path, run, cached=True)
    assert again.quick() == 0
    with again.batches(0) as batches:
        assert all(same(next(batches), batch) for batch in direct)
    assert again.quick() >= epoch

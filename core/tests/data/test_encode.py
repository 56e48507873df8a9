"""Filling the cache: what is missing, and nothing else."""

import pytest
import torch

from core.tests.data.support import FIELDS, CountingRun, Quiet, ordered, picture, pictures
from tunesmith import Caption, Field, InputError, Ragged, RunFailed
from tunesmith.cache.disk import Cache
from tunesmith.cache.store import sample_key
from tunesmith.data.dataset import Dataset
from tunesmith.data.images import load_pixels
from tunesmith.encoding.encode import read_caption_fields
from tunesmith.encoding.fill import fill


@pytest.fixture
def run(tmp_path):
    return CountingRun(tmp_path)


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache") as made:
        yield made


def latents_key(run, order, source) -> str:
    return sample_key(FIELDS[0], order.datasets[source.dataset].recipe("pixels"), run.file_hashes.of(source.file), source.crop)


def test_every_field_of_every_sample_and_caption_is_stored(tmp_path, run, cache):
    pictures(tmp_path / "set", 5)
    order = ordered(tmp_path / "set")
    progress = Quiet()
    fill(run, cache, FIELDS, order, order.all_captions(), progress)
    assert run.encoded == {"latents": 5, "edges": 5, "prompt": 5, "length": 5}
    assert progress.stages == {"encoding captions": [5, 5], "hashing files": [5, 5], "encoding samples": [5, 5]}
    for source in order.all_sources():
        key = latents_key(run, order, source)
        assert torch.equal(cache.get(key), load_pixels(source).mean(dim=(1, 2)))


def test_batches_to_encode_hold_captions_alone_or_samples_of_one_size(tmp_path, run, cache):
    pictures(tmp_path / "set", 3)
    pictures(tmp_path / "set", 3, (64, 16), "wide")
    order = ordered(tmp_path / "set", batch_size=2)
    fill(run, cache, FIELDS, order, order.all_captions(), Quiet())
    assert len(run.batches) == 3 + 4
    for batch in run.batches:
        assert len(batch) <= 2
        if batch.pixels is None:
            assert batch.sources == ()
            assert batch.wanted == {"prompt", "length"}
        else:
            assert batch.wanted == {"latents", "edges"}
            assert batch.captions == tuple(source.caption for source in batch.sources)
            [size] = {source.crop.size for source in batch.sources}
            assert batch.pixels.shape == (len(batch), 3, size[1], size[0])


def test_a_full_cache_decodes_and_encodes_nothing(tmp_path, run, cache, monkeypatch):
    pictures(tmp_path / "set", 4)
    order = ordered(tmp_path / "set")
    fill(run, cache, FIELDS, order, order.all_captions(), Quiet())
    run.encoded.clear()
    monkeypatch.setattr(Dataset, "load", lambda self, source, need: pytest.fail("decoded"))
    fill(run, cache, FIELDS, order, order.all_captions(), Quiet())
    assert run.encoded == {}


def test_only_new_files_new_captions_and_changed_encoders_are_encoded(tmp_path, run, cache):
    folder = pictures(tmp_path / "set", 4)
    first = ordered(folder)
    fill(run, cache, FIELDS, first, first.all_captions(), Quiet())
    run.encoded.clear()
    picture(folder / "new.png", seed=99)
    second = ordered(folder)
    fill(run, cache, FIELDS, second, [*second.all_captions(), Caption("new", negative=True)], Quiet())
    assert run.encoded == {"latents": 1, "edges": 1, "prompt": 2, "length": 2}
    run.encoded.clear()
    changed = (FIELDS[0], Field("edges", "edge-2", per_sample=True), *FIELDS[2:])
    fill(run, cache, changed, second, second.all_captions(), Quiet())
    assert run.encoded == {"edges": 5}
    assert run.batches[-1].wanted == {"edges"}


def test_fields_of_captions_alone_decode_no_pixels(tmp_path, run, cache, monkeypatch):
    pictures(tmp_path / "set", 2)
    order = ordered(tmp_path / "set")
    monkeypatch.setattr(Dataset, "load", lambda self, source, need: pytest.fail("decoded"))
    fill(run, cache, FIELDS[2:], order, order.all_captions(), Quiet())
    assert run.encoded == {"prompt": 2, "length": 2}


def test_a_renamed_file_is_not_encoded_again(tmp_path, run, cache):
    folder = pictures(tmp_path / "set", 2)
    first = ordered(folder)
    fill(run, cache, FIELDS[:1], first, (), Quiet())
    (folder / "00.png").rename(folder / "renamed.png")
    run.encoded.clear()
    fill(run, cache, FIELDS[:1], ordered(folder), (), Quiet())
    assert run.encoded == {}


def test_a_file_that_cannot_be_decoded_is_dropped_counted_and_named(tmp_path, run, cache):
    folder = pictures(tmp_path / "set", 5, (40, 32))
    whole = picture(folder / "02.png", (40, 32), seed=5).read_bytes()
    (folder / "02.png").write_bytes(whole[: len(whole) // 2])
    order = ordered(folder, crop="random", variants=2)
    fill(run, cache, FIELDS, order, order.all_captions(), Quiet())
    dataset = order.datasets["set"]
    assert "02.png" not in {sample.name for sample in dataset.samples}
    [lost] = dataset.funnel.losses
    assert (lost.station, lost.count, lost.examples) == ("readable", 1, ["02.png"])
    assert run.encoded["latents"] == 8
    assert {source.file.name for position in range(8) for source in order.batch(position)} <= {"00.png", "01.png", "03.png", "04.png"}


def test_a_file_that_vanishes_after_the_scan_is_dropped(tmp_path, run, cache):
    folder = pictures(tmp_path / "set", 3)
    order = ordered(folder)
    (folder / "01.png").unlink()
    fill(run, cache, FIELDS, order, order.all_captions(), Quiet())
    assert [sample.name for sample in order.datasets["set"].samples] == ["00.png", "02.png"]


def test_losing_the_last_whole_batch_while_encoding_stops_with_the_funnel(tmp_path, run, cache):
    folder = pictures(tmp_path / "set", 2)
    order = ordered(folder)
    (folder / "01.png").unlink()
    with pytest.raises(InputError, match=r"2 found -> 1 readable(.|\n)*01.png(.|\n)*oversubscribe = true"):
        fill(run, cache, FIELDS, order, order.all_captions(), Quiet())


def test_values_that_are_not_finite_stop_and_are_not_stored(tmp_path, run, cache, monkeypatch):
    folder = pictures(tmp_path / "set", 2)
    order = ordered(folder)
    encode_batch = run.encode_batch

    def overflow(_, batch):
        batch = encode_batch(_, batch)
        batch.fields["latents"][1] = float("inf")
        return batch

    monkeypatch.setattr(run, "encode_batch", overflow)
    with pytest.raises(RunFailed, match=r"'latents' of set:.*01.png is not finite"):
        fill(run, cache, FIELDS[:1], order, (), Quiet())
    assert cache.contains_many(latents_key(run, order, source) for source in order.all_sources()) == set()


def test_what_was_encoded_before_a_failure_is_kept(tmp_path, run, cache, monkeypatch):
    folder = pictures(tmp_path / "set", 6)
    order = ordered(folder)
    encode_batch = run.encode_batch

    def fail_later(_, batch):
        if run.encoded["latents"] == 4:
            raise KeyboardInterrupt
        return encode_batch(_, batch)

    monkeypatch.setattr(run, "encode_batch", fail_later)
    with pytest.raises(KeyboardInterrupt):
        fill(run, cache, FIELDS[:1], order, (), Quiet())
    monkeypatch.undo()
    run.encoded.clear()
    with Cache(cache.folder) as later:
        fill(run, later, FIELDS[:1], order, (), Quiet())
    assert run.encoded == {"latents": 2}


@pytest.mark.parametrize("cached", [True, False])
def test_the_fields_of_one_caption_are_a_batch_of_one(tmp_path, run, cache, cached):
    pictures(tmp_path / "set", 2)
    order = ordered(tmp_path / "set")
    fill(run, cache, FIELDS, order, [Caption("cat")], Quiet())
    found = read_caption_fields(run, cache if cached else None, FIELDS, Caption("cat"))
    assert found.keys() == {"prompt", "length"}
    assert isinstance(found["prompt"], Ragged)
    assert [value.flatten().tolist() for value in found["prompt"].values] == [[99.0, 97.0, 116.0, 46.0]]
    assert isinstance(found["length"], torch.Tensor)
    assert found["length"].tolist() == [[3]]


def test_a_caption_that_the_cache_has_lost_is_encoded_and_stored(tmp_path, run, cache):
    first = read_caption_fields(run, cache, FIELDS, Caption("dog"))
    second = read_caption_fields(run, cache, FIELDS, Caption("dog"))
    assert run.encoded == {"prompt": 1, "length": 1}
    for found in (first, second):
        assert isinstance(found["length"], torch.Tensor)
        assert found["length"].tolist() == [[3]]

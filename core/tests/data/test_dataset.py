"""Scanning datasets, and the funnel that tells what became of their files."""

import json
import os
import time
from dataclasses import replace

import pytest
from PIL import Image

from core.tests.data.clips import ClipFacts, ClipKind, ClipTable, clip_table
from core.tests.data.support import Facts, picture, pictures, run_table, scanned, table
from tunesmith import InputError, Piece, Target
from tunesmith.data.dataset import Dataset, Sample
from tunesmith.data.funnel import Funnel
from tunesmith.data.pictures import ImageKind
from tunesmith.data.scan import survey
from tunesmith.kinds import Probe, Unfit


def surveyed(folder, batch_size=1, **settings):
    return survey(table(folder, **settings), Facts(), run_table(batch_size))


def losses(dataset):
    return {(lost.station, lost.reason): (lost.count, lost.examples) for lost in dataset.funnel.losses}


def test_samples_are_found_below_the_folder_in_the_order_of_their_names(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b.webp", "c.jpeg", "notes.md", ".hidden.png", ".git/x.png"):
        if name.endswith("md"):
            (tmp_path / name).write_bytes(b"# notes")
        else:
            picture(tmp_path / name)
    dataset = surveyed(tmp_path)
    assert [sample.name for sample in dataset.samples] == ["a/b.webp", "a/z.JPG", "b.png", "c.jpeg"]
    assert dataset.funnel.total == 4
    assert dataset.name == tmp_path.name


def test_samples_are_put_into_the_buckets_of_their_sizes(tmp_path):
    pictures(tmp_path, 3)
    pictures(tmp_path, 2, (64, 16), "wide")
    dataset = surveyed(tmp_path)
    assert dataset.buckets == {(32, 32, 1): [0, 1, 2], (64, 16, 1): [3, 4]}


def test_hostile_files_are_left_out_counted_and_named(tmp_path):
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    pictures(folder, 2)
    secret = picture(elsewhere / "secret.png")
    (elsewhere / "secret.txt").write_text("secret")
    (folder / "page.png").write_bytes(b"<html>")
    (folder / "zero.jpg").write_bytes(b"")
    Image.new("L", (4, 4)).save(folder / "animated.webp", format="GIF")
    Image.new("L", (1, 40000)).save(folder / "line.png")
    (folder / "link.png").symlink_to(secret)
    (folder / "dangling.png").symlink_to(elsewhere / "gone.png")
    (folder / "folder").symlink_to(elsewhere, target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "inside.png").symlink_to(folder / "00.png")
    for name in ("00", "01", "line", "inside"):
        (folder / f"{name}.txt").write_text(name)
    picture(folder / "linked_caption.png")
    (folder / "linked_caption.txt").symlink_to(elsewhere / "secret.txt")
    picture(folder / "uncaptioned.png")

    dataset = surveyed(folder, captions="textfile")

    assert [sample.name for sample in dataset.samples] == ["00.png", "01.png", "inside.png"]
    assert losses(dataset) == {
        ("readable", "a link that leaves the dataset's folder is not followed"): (2, ["dangling.png", "link.png"]),
        ("readable", "a linked folder is not followed"): (2, ["folder/", "loop/"]),
        ("readable", "not a JPEG, PNG or WebP picture (it begins with b'<html>')"): (1, ["page.png"]),
        ("readable", "not a JPEG, PNG or WebP picture (it begins with b'GIF87a\\x04\\x00\\x04\\x00\\x81\\x00')"): (1, ["animated.webp"]),
        ("readable", "not a JPEG, PNG or WebP picture (the file is empty)"): (1, ["zero.jpg"]),
        ("captioned", "its .txt file is a link that leaves the dataset's folder"): (1, ["linked_caption.png"]),
        ("captioned", "no .txt file beside it"): (1, ["uncaptioned.png"]),
        ("sized", "too elongated: less than 1/16 would be left"): (1, ["line.png 1x40000"]),
    }
    counts = [dataset.funnel.passed(station) for station in ("found", "readable", "captioned", "sized", "batched")]
    assert counts == [13, 6, 4, 3, 3]


def test_the_links_of_a_hub_snapshot_are_followed(tmp_path):
    blob = picture(tmp_path / "datasets--a--b" / "blobs" / "0" / "x.png")
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "main" / "train"
    snapshot.mkdir(parents=True)
    (snapshot / "x.png").symlink_to(os.path.relpath(blob, snapshot))
    assert [sample.name for sample in surveyed(snapshot).samples] == ["x.png"]


def test_small_buckets_are_lost_and_remainders_counted(tmp_path):
    pictures(tmp_path, 7)
    pictures(tmp_path, 2, (64, 16), "wide")
    dataset = scanned(tmp_path, batch_size=3)
    assert dataset.buckets == {(32, 32, 1): list(range(7))}
    assert (dataset.funnel.batches, dataset.funnel.drawn, dataset.funnel.left_over) == (2, 6, 1)
    examples = ["wide00.png with 2 in 64x16", "wide01.png with 2 in 64x16"]
    assert losses(dataset) == {("batched", "the bucket has too few samples for a batch of 3"): (2, examples)}
    assert json.loads(json.dumps(dataset.funnel.as_json()))["counts"] == {
        "found": 9,
        "readable": 9,
        "captioned": 9,
        "paired": 9,
        "sized": 9,
        "timed": 9,
        "bucketed": 9,
        "batched": 7,
        "samples an epoch": 6,
        "batches": 2,
    }


def test_repeats_and_oversubscription_rescue_small_buckets(tmp_path):
    pictures(tmp_path, 3)
    assert scanned(tmp_path, batch_size=8, repeats=3).funnel.batches == 1
    assert scanned(tmp_path, batch_size=8, oversubscribe=True).funnel.batches == 1
    assert surveyed(tmp_path, batch_size=8, repeats=2).funnel.batches == 0


def test_a_dataset_may_have_a_batch_size_of_its_own(tmp_path):
    pictures(tmp_path, 3)
    dataset = survey(table(tmp_path, batch_size=3), Facts(), run_table(8))
    assert (dataset.batch_size, dataset.funnel.batches) == (3, 1)


def test_no_whole_batch_stops_with_the_funnel_and_remedies_that_help(tmp_path):
    pictures(tmp_path, 3)
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(InputError) as raised:
        scanned(tmp_path, batch_size=8)
    message = str(raised.value)
    stations = "4 found -> 3 readable -> 3 captioned -> 3 large enough -> 3 in a bucket -> 0 in a whole batch -> 0 whole batches"
    assert stations in message
    assert "bad.png" in message
    assert "`repeats = 3`" in message
    assert "`oversubscribe = true`" in message
    assert "`batch_size = 3`" in message


def test_a_folder_without_pictures_or_no_folder_at_all_is_told(tmp_path):
    with pytest.raises(
        InputError,
        match=r"0 found(.|\n)*remedy: put files with captions \(captions = 'filename'\) there, whose names end in .jpeg, .jpg, .png, .webp",
    ):
        scanned(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        scanned(tmp_path / "gone")


def test_a_file_dropped_later_leaves_its_bucket_and_is_named(tmp_path):
    pictures(tmp_path, 4)
    dataset = scanned(tmp_path, batch_size=2)
    bad = dataset.samples[1].file
    assert dataset.drop(bad, "cannot be decoded (truncated)")
    assert not dataset.drop(bad, "cannot be decoded (truncated)")
    assert [sample.name for sample in dataset.samples] == ["00.png", "02.png", "03.png"]
    assert (dataset.funnel.batches, dataset.funnel.left_over) == (1, 1)
    assert losses(dataset) == {("readable", "cannot be decoded (truncated)"): (1, ["01.png"])}
    dataset.drop(dataset.samples[0].file, "gone")
    dataset.drop(dataset.samples[0].file, "gone")
    with pytest.raises(InputError, match="1 in a bucket -> 0 in a whole batch"):
        dataset.require_batches()


def test_enlarged_pictures_are_noted(tmp_path):
    pictures(tmp_path, 2)
    picture(tmp_path / "small.png", (16, 16))
    assert surveyed(tmp_path).funnel.notes == [
        "1 of 3 samples are smaller than their target and are enlarged (small.png: 16x16 to 32x32); a smaller `resolution` avoids that"
    ]


def test_many_files_are_dropped_without_looking_at_all_samples_for_each(tmp_path):
    pictures(tmp_path, 2)
    dataset = scanned(tmp_path, batch_size=1)
    first = dataset.samples[0]
    many = [replace(first, where=f"/nowhere/{number}.png", name=f"{number}.png") for number in range(20_000)]
    large = type(dataset)(dataset.table, dataset.kind, "large", 1, many, replace(dataset.funnel, total=20_000))
    began = time.perf_counter()
    assert all(large.drop(sample.file, "gone") for sample in many[::2])
    assert len(large.samples) == 10_000
    assert time.perf_counter() - began < 3  # one look at all samples for each would take minutes
    assert [sample.name for sample in large.samples[:2]] == ["1.png", "3.png"]
    assert large.funnel.passed("bucketed") == large.funnel.batches == 10_000


def test_at_most_so_many_samples_are_chosen_whatever_else_is_there(tmp_path):
    def chosen(**settings):
        dataset = surveyed(tmp_path, name="set", max_samples=5, **settings)
        return dataset, {sample.name for sample in dataset.samples}

    pictures(tmp_path, 12)
    dataset, before = chosen()
    assert len(before) == 5
    assert dataset.funnel.passed("sized") == 12
    assert dataset.funnel.passed("bucketed") == dataset.funnel.passed("batched") == 5
    assert dataset.funnel.notes == ["max_samples = 5: of 12 samples so many are taken, chosen by the dataset's name"]
    assert "12 large enough -> 5 samples -> 5 in a bucket" in dataset.funnel.lines()[0]
    pictures(tmp_path, 1, prefix="another")
    assert len(before & chosen()[1]) >= 4
    (tmp_path / f"{sorted(before)[0]}").unlink()
    assert before & chosen()[1] >= before - {sorted(before)[0]}
    others = {sample.name for sample in surveyed(tmp_path, name="other", max_samples=5).samples}
    assert others != chosen()[1]


def test_short_buckets_get_a_remedy_with_a_number(tmp_path):
    pictures(tmp_path, 3)
    pictures(tmp_path, 2, (64, 16), "wide")
    with pytest.raises(InputError, match=r"`repeats = 4` makes batches of all 2 buckets \(the smallest has 2\)"):
        scanned(tmp_path, batch_size=8)
    assert len(scanned(tmp_path, batch_size=8, repeats=4).buckets) == 2
    assert len(scanned(tmp_path, batch_size=8, repeats=3).buckets) == 1


class Tiles(ImageKind):
    """Pictures of which each gives as many samples as its name begins with; 0 is too short."""

    def pieces(self, probe, name):
        count = int(name[0])
        if not count:
            raise Unfit("timed", "too short", "of 0 s")
        return super().pieces(probe, name) * count


def test_files_may_give_several_samples_which_are_counted_from_the_buckets_on(tmp_path):
    for name in ("0", "1", "3"):
        picture(tmp_path / f"{name}.png")
    made = table(tmp_path)
    dataset = survey(made, Facts(), run_table(1), Tiles(made, Facts()))
    assert [sample.name for sample in dataset.samples] == ["1.png", "3.png", "3.png#2", "3.png#3"]
    stations = "3 found -> 3 readable -> 3 captioned -> 3 large enough -> 2 long enough -> 4 samples -> 4 in a bucket -> 4 in a whole batch"
    assert stations in dataset.funnel.lines()[0]
    assert dataset.funnel.lines()[1] == "  1 not of a usable length: too short (0.png of 0 s)"
    dataset.drop(tmp_path / "3.png", "gone")
    assert [dataset.funnel.passed(station) for station in ("readable", "timed", "bucketed", "batched")] == [2, 1, 1, 1]


def test_scanning_reads_headers_only(tmp_path, monkeypatch):
    pictures(tmp_path, 3)

    def refuse(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert len(surveyed(tmp_path).samples) == 3


def test_clips_without_all_the_frames_before_them_that_a_family_is_given_are_counted(tmp_path):
    family = ClipFacts()
    family.history = 8
    kind = ClipKind(clip_table(tmp_path), family)

    class Windows(ClipTable):
        window: str = "start"
        """Which part of a clip."""

    def told(*pieces, kind=kind):
        samples = [Sample("a.clip", f"a.clip#{number}", ("a",), Probe(32, 32), piece) for number, piece in enumerate(pieces)]
        return Dataset(kind.table, kind, "clips", 1, samples, Funnel("clips")).funnel.notes

    target = Target((32, 32), (32, 32), 1.0)
    early, late, drawn = Piece(target, 9, 16, 7 / 16), Piece(target, 9, 16, 8 / 16), Piece(target, 9, 16, 0.0, 8 / 16)
    counted = "2 of 3 clips can have all 8 frames before them that clipfacts is given, the others begin too early in their files"
    assert told(early, late, drawn) == [counted]
    from_start = ClipKind(Windows(path=str(tmp_path)), family)
    assert told(early, late, drawn, kind=from_start) == [f'{counted}; `window = "every"` takes later windows, too']
    assert told(late, drawn) == told(Piece(target)) == []

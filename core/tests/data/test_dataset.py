"""Captions, scanning a folder, and the funnel that tells what became of its files."""

import json
import os

import pytest
from PIL import Image

from core.tests.data.support import Facts, picture, pictures, run_table, scanned, table
from tunesmith import InputError
from tunesmith.data.captions import NoCaption, captions_of
from tunesmith.data.dataset import survey


def surveyed(folder, batch_size=1, **settings):
    return survey(table(folder, **settings), Facts(), run_table(batch_size))


def losses(dataset):
    return {(lost.station, lost.reason): (lost.count, lost.examples) for lost in dataset.funnel.losses}


def test_the_lines_of_a_text_file_are_alternative_captions(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff  ein Bär \r\n\n\tzwei Bären\n".encode())
    assert captions_of(tmp_path / "a.png", table(tmp_path, captions="textfile")) == ("ein Bär", "zwei Bären")


def test_captions_from_names_read_underscores_as_spaces_and_instances_share_one(tmp_path):
    file = tmp_path / "a_red_fox.2.png"
    assert captions_of(file, table(tmp_path, captions="filename")) == ("a red fox.2",)
    assert captions_of(file, table(tmp_path, captions="instance", instance_prompt="a sks fox")) == ("a sks fox",)


@pytest.mark.parametrize(("content", "reason"), [(None, "no .txt file"), (b" \n\n", "is empty"), (b"\xff\xfea", "not UTF-8")])
def test_a_missing_empty_or_undecodable_text_file_says_so(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(NoCaption, match=reason):
        captions_of(tmp_path / "a.png", table(tmp_path, captions="textfile"))


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
        ("captioned", "no .txt file beside the picture"): (1, ["uncaptioned.png"]),
        ("sized", "too elongated: less than 1/16 would be left"): (1, ["line.png 1x40000"]),
    }
    counts = [dataset.funnel.passed(station) for station in ("found", "readable", "captioned", "sized", "bucketed")]
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
        "sized": 9,
        "bucketed": 7,
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
    assert "4 found -> 3 readable -> 3 captioned -> 3 sized -> 0 bucketed -> 0 whole batches" in message
    assert "bad.png" in message
    assert "`repeats = 3`" in message
    assert "`oversubscribe = true`" in message
    assert "`batch_size = 3`" in message


def test_a_folder_without_pictures_or_no_folder_at_all_is_told(tmp_path):
    with pytest.raises(InputError, match=r"0 found(.|\n)*remedy: put jpg, png or webp files"):
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
    with pytest.raises(InputError, match="1 sized -> 0 bucketed"):
        dataset.require_batches()


def test_enlarged_pictures_are_noted(tmp_path):
    pictures(tmp_path, 2)
    picture(tmp_path / "small.png", (16, 16))
    assert surveyed(tmp_path).funnel.notes == [
        "1 of 3 pictures are smaller than their target and are enlarged (small.png: 16x16 to 32x32); a smaller `resolution` avoids that"
    ]


def test_scanning_reads_headers_only(tmp_path, monkeypatch):
    pictures(tmp_path, 3)

    def refuse(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert len(surveyed(tmp_path).samples) == 3

"""Several datasets together: masks paired with samples, what the index remembers, and duplicates."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from core.tests.data.support import Facts, picture, pictures, run_table, table
from tunesmith import Caption
from tunesmith.config.datasets import DatasetTable, ImageTable, MaskTable
from tunesmith.data.duplicates import duplicates
from tunesmith.data.hashing import FileHashes
from tunesmith.data.pictures import ImageKind
from tunesmith.data.scan import Surroundings, survey, survey_all
from tunesmith.family import Modality
from tunesmith.listing.index import Index


def surveyed(folder, batch_size=1, **settings):
    return survey(table(folder, **settings), Facts(), run_table(batch_size))


def losses(dataset):
    return {(lost.station, lost.reason): (lost.count, lost.examples) for lost in dataset.funnel.losses}


@contextmanager
def surroundings(database=None, family=None) -> Iterator[Surroundings]:
    with Index(database) as index:
        yield Surroundings(family or Facts(), run_table(1), index)


def paired(folder, missing="skip", **photos):
    tables: list[DatasetTable] = [
        MaskTable(path=str(folder / "masks"), kind="mask", of="photos", name="masks", missing=missing),
        ImageTable(path=str(folder / "photos"), captions="filename", name="photos", **photos),
    ]
    with surroundings() as around:
        datasets, wrong = survey_all(tables, around)
    assert not wrong
    assert list(datasets) == [1]
    return datasets[1]


def masks_of(dataset):
    return {sample.name: dict(sample.companions).get("mask") for sample in dataset.samples}


def test_masks_are_paired_by_the_name_below_their_folder_without_ending(tmp_path):
    for name in ("a.png", "sub/a.jpg", "b.c.png", "alone.png", "damaged.png"):
        picture(tmp_path / "photos" / name)
    for name in ("a.webp", "sub/a.png", "b.c.png", "b.png", "elsewhere/alone.png"):
        picture(tmp_path / "masks" / name)
    (tmp_path / "masks" / "damaged.png").write_bytes(b"")
    dataset = paired(tmp_path)
    found = {"a.png": "a.webp", "b.c.png": "b.c.png", "sub/a.jpg": "sub/a.png"}
    assert masks_of(dataset) == {name: str(tmp_path / "masks" / mask) for name, mask in found.items()}
    assert losses(dataset) == {
        ("paired", "no mask of its name in dataset 'masks'"): (1, ["alone.png"]),
        ("paired", "its mask in dataset 'masks' cannot be used"): (1, ["damaged.png"]),
    }
    assert "5 captioned -> 3 paired -> 3 large enough" in dataset.funnel.lines()[0]
    assert dataset.funnel.notes == [
        "mask in dataset 'masks': 6 found -> 5 readable; 1 not readable: "
        "not a JPEG, PNG or WebP picture (the file is empty) (damaged.png)",
        "2 files of 'masks' belong to no sample (b.png, alone.png)",
    ]  # fmt: skip


def test_a_missing_mask_may_be_allowed_but_a_damaged_one_is_not_taken_for_missing(tmp_path):
    for name in ("alone.png", "damaged.png"):
        picture(tmp_path / "photos" / name)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "damaged.png").write_bytes(b"")
    dataset = paired(tmp_path, missing="full")
    assert masks_of(dataset) == {"alone.png": None}
    assert losses(dataset) == {("paired", "its mask in dataset 'masks' cannot be used"): (1, ["damaged.png"])}


def test_a_mask_is_cut_as_its_sample_is_and_a_missing_one_counts_in_full(tmp_path):
    for name in ("cut.png", "full.png"):
        picture(tmp_path / "photos" / name, (96, 32))
    mask = Image.new("L", (96, 32))
    mask.paste(255, (64, 0, 96, 32))  # the right third, of which a central square of the middle shows nothing
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "cut.png")
    dataset = paired(tmp_path, missing="full", crop_aspect="square")
    sources = [dataset.source(sample, Caption("x"), dataset.kind.part(sample.piece, None)) for sample in dataset.samples]
    assert [source.crop.offset for source in sources] == [(32, 0), (32, 0)]
    cut, full = (dataset.load(source, "mask") for source in sources)
    assert cut.shape == full.shape == (1, 32, 32)
    assert cut.max() == 0
    assert full.min() == 1
    assert dataset.files(sources[0], "mask") == (tmp_path / "masks" / "cut.png",)
    assert dataset.files(sources[1], "mask") == ()


def test_of_two_masks_of_one_name_the_first_is_taken_and_masks_of_another_shape_are_told(tmp_path):
    picture(tmp_path / "photos" / "a.png")
    picture(tmp_path / "masks" / "a.jpg", (64, 32))
    picture(tmp_path / "masks" / "a.png")
    dataset = paired(tmp_path)
    assert masks_of(dataset) == {"a.png": str(tmp_path / "masks" / "a.jpg")}
    assert dataset.funnel.notes == [
        "mask in dataset 'masks': 2 found -> 2 readable; a.jpg and a.png are for the same sample; the first is taken",
        "1 samples have a mask of another shape, which is stretched (a.png: 32x32, its mask 64x32)",
    ]


def test_what_is_wrong_with_datasets_is_told_of_each_and_the_others_are_had(tmp_path):
    pictures(tmp_path / "there", 1)
    tables = [table(tmp_path / "gone"), table(tmp_path / "there"), table(tmp_path / "away")]
    with surroundings() as around:
        datasets, wrong = survey_all(tables, around)
    assert list(datasets) == [1]
    assert [number for number, _ in wrong] == [0, 2]
    assert "is not a folder" in str(wrong[0][1])


def test_a_family_that_generates_something_else_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageKind, "modalities", frozenset({Modality.VIDEO}))
    with surroundings() as around:
        [(_, error)] = survey_all([table(tmp_path)], around)[1]
    assert str(error) == "kind = 'image': facts generates images and cannot be trained on datasets of this kind"


def test_a_second_look_reads_only_what_has_changed(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "set", 3)
    for number in range(3):
        (folder / f"{number:02}.txt").write_text(f"number {number}")
    read: list[str] = []
    probe = ImageKind.probe

    def counted(cls, file):
        read.append(file.name)
        return probe(file)

    monkeypatch.setattr(ImageKind, "probe", classmethod(counted))

    def look():
        read.clear()
        with surroundings(tmp_path / "headers.sqlite") as around:
            [dataset] = survey_all([table(folder, captions="textfile")], around)[0].values()
        return [(sample.probe.size, sample.captions) for sample in dataset.samples]

    first = look()
    assert sorted(read) == ["00.png", "01.png", "02.png"]
    picture(folder / "01.png", (64, 32))
    (folder / "02.txt").write_text("another caption")
    assert look() == [first[0], ((64, 32), ("number 1",)), ((32, 32), ("another caption",))]
    assert read == ["01.png"]


def test_duplicates_are_found_reading_only_files_of_one_size(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    picture(one / "a.png", seed=1)
    picture(one / "a.jpg", seed=2)
    picture(one / "single.png", (64, 64), seed=3)
    two.mkdir()
    shutil.copy(one / "a.png", two / "copy.png")
    datasets = [surveyed(one), surveyed(two)]
    read: list[str] = []
    hash_of = FileHashes.of

    def counted(self, file):
        read.append(file.name)
        return hash_of(self, file)

    monkeypatch.setattr(FileHashes, "of", counted)
    with FileHashes(tmp_path / "files.sqlite") as hashes:
        found = duplicates(datasets, hashes)
    assert [str(one) for one in found] == ["same bytes: one:a.png, two:copy.png", "same name: one:a.jpg, one:a.png"]
    assert sorted(read) == ["a.png", "copy.png"]

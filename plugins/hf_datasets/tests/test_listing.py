"""The files of Hugging Face datasets: as they are, written once, with their captions."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from tunesmith import Funnel, InputError, Listing, NoSettings, SampleTable
from tunesmith_hf_datasets import HfDatasets, HubDataset

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Caches of the library that no other test has."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def picture(form="PNG", seed=0):
    """The bytes of a picture."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


def kind_of(suffixes=PICTURES, **settings):
    """As much of a kind as a listing looks at."""
    return SimpleNamespace(suffixes=suffixes, table=SampleTable(path="unused", **settings))


def listed(dataset, folder, kind=None, **settings):
    """The listing of a dataset, and the reasons why rows were lost, with their names."""
    funnel = Funnel("set")
    source = HubDataset.model_validate({"dataset": str(dataset), **settings})
    listing = HfDatasets("hf_datasets", NoSettings()).listing(source, kind or kind_of(), folder, funnel)
    assert isinstance(listing, Listing)
    return listing, {lost.reason: lost.examples for lost in funnel.losses}


def as_parquet(folder, columns, **features):
    """A folder with one parquet file of two row groups."""
    folder.mkdir()
    table = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        table = table.cast_column(name, feature)
    table.to_parquet(str(folder / "train-00000-of-00001.parquet"), batch_size=2)
    return folder


def inside(*files):
    return [{"bytes": content, "path": name} for name, content in files]


def test_pictures_inside_of_parquet_are_written_as_they_are_with_their_captions(tmp_path):
    contents = [picture("JPEG", 1), picture("WEBP", 2), picture("PNG", 3)]
    images = inside(("a/x.JPG", contents[0]), (None, contents[1]), ("no ending", contents[2]))
    folder = as_parquet(
        tmp_path / "set", {"image": images, "text": ["one", "two", "three"], "id": [1, 2, 3]}, image=datasets.Image(decode=False)
    )
    listing, lost = listed(folder, tmp_path / "kept", kind_of(captions="column"))
    assert [(entry.name, entry.columns) for entry in listing.entries] == [
        ("00000000.jpg", {"text": "one"}),
        ("00000001.webp", {"text": "two"}),
        ("00000002.png", {"text": "three"}),
    ]
    assert [Path(entry.where).read_bytes() for entry in listing.entries] == contents
    assert all(Path(entry.where).is_relative_to(tmp_path / "kept") for entry in listing.entries)
    assert lost == {}


def test_files_of_a_parquet_file_that_another_program_wrote_are_found(tmp_path):
    (tmp_path / "data").mkdir()
    rows = pa.table({"image": inside(("a.png", picture()), (None, picture("JPEG"))), "text": ["a", "b"]})
    pq.write_table(rows, tmp_path / "data/train.parquet")
    for asked in ({}, {"file_column": "image"}):
        listing, lost = listed(tmp_path / "data", tmp_path / "kept", kind_of(captions="column"), **asked)
        assert [entry.name for entry in listing.entries] == ["00000000.png", "00000001.jpg"]
        assert lost == {}
        assert Path(listing.entries[0].where).read_bytes() == picture()


def test_files_are_written_once_and_interrupted_writing_goes_on(tmp_path, monkeypatch):
    images = inside(*((f"{number}.png", picture(seed=number)) for number in range(5)))
    folder = as_parquet(tmp_path / "set", {"image": images}, image=datasets.Image(decode=False))
    written: list[str] = []
    whole = Path.replace

    def counted(self, target):
        if len(written) == 2 and not broken:
            broken.append(target)
            raise OSError(28, "No space left on device")
        written.append(Path(target).name)
        return whole(self, target)

    broken: list[Path] = []
    monkeypatch.setattr(Path, "replace", counted)
    with pytest.raises(InputError, match=r"cannot be written to \(No space left on device\)"):
        listed(folder, tmp_path / "kept")
    first, _ = listed(folder, tmp_path / "kept")
    assert written == ["00000000.png", "00000001.png", "00000002.png", "00000003.png", "00000004.png", "done.json"]
    again, _ = listed(folder, tmp_path / "kept")
    assert again == first
    assert len(written) == 6
    assert not [file for file in (tmp_path / "kept").rglob("*") if file.name.startswith(".")]


def test_a_changed_dataset_is_written_anew(tmp_path):
    folder = as_parquet(tmp_path / "set", {"image": inside(("a.png", picture(seed=1)))}, image=datasets.Image(decode=False))
    listed(folder, tmp_path / "kept")
    file = next(folder.iterdir())
    datasets.Dataset.from_dict({"image": inside(("a.png", picture(seed=2)))}).cast_column("image", datasets.Image(decode=False)).to_parquet(
        str(file)
    )
    [entry] = listed(folder, tmp_path / "kept")[0].entries
    assert Path(entry.where).read_bytes() == picture(seed=2)


def test_rows_without_a_file_that_can_be_read_are_named_every_time(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    images = inside(("a.png", picture()), (None, b"GIF89a..."), ("b.gif", b"GIF89a"), (None, None), (str(secret), None), ("c.bmp", None))
    folder = as_parquet(tmp_path / "set", {"image": images}, image=datasets.Image(decode=False))
    for _ in range(2):
        listing, lost = listed(folder, tmp_path / "kept")
        assert [entry.name for entry in listing.entries] == ["00000000.png"]
        assert lost == {
            "what it holds is of no known format (it begins with b'GIF89a..')": ["row 1"],
            ".gif is not read": ["row 2"],
            "the row holds no file": ["row 3"],
            "the row names a file outside of the dataset, which is not read": ["row 4"],
            ".bmp is not read": ["row 5"],
        }


def test_a_folder_of_pictures_stays_where_it_is(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    for name in ("b.jpg", "a.jpg"):
        (folder / name).write_bytes(picture("JPEG"))
    (folder / "metadata.csv").write_text("file_name,caption\na.jpg,one\nb.jpg,two\n")
    for _ in range(2):
        listing, lost = listed(tmp_path / "set", tmp_path / "kept", kind_of(captions="column"))
        found = {os.path.relpath(entry.where, tmp_path): entry.columns["caption"] for entry in listing.entries}
        assert found == {"set/train/a.jpg": "one", "set/train/b.jpg": "two"}
        assert [entry.name for entry in listing.entries] == ["00000000.jpg", "00000001.jpg"]
        assert lost == {}
    assert tmp_path / "set" in listing.homes


def test_a_hub_id_is_asked_for_as_it_was_told_and_may_name_files_in_the_hub_s_cache(tmp_path, monkeypatch):
    blob = tmp_path / "hub" / "datasets--a--b" / "blobs" / "0"
    snapshot = tmp_path / "hub" / "datasets--a--b" / "snapshots" / "main"
    for folder in (blob.parent, snapshot):
        folder.mkdir(parents=True)
    blob.write_bytes(picture())
    (snapshot / "x.png").symlink_to(blob)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = []

    def load_dataset(*arguments, **more):
        asked.append((arguments, more))
        return datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(snapshot / "x.png")}]}).cast_column(
            "image", datasets.Image()
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [entry] = listed("a/b", tmp_path / "kept", config="large", split="train[:10%]", revision="v2")[0].entries
    assert (entry.where, asked) == (str(snapshot / "x.png"), [(("a/b", "large"), {"split": "train[:10%]", "revision": "v2"})])


def test_what_save_to_disk_wrote_is_read_by_split(tmp_path):
    table = datasets.Dataset.from_dict({"image": inside(("a.png", picture()))}).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "single")
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "several")
    for name, split in (("single", "train"), ("several", "test")):
        [entry] = listed(tmp_path / name, tmp_path / "kept" / name, split=split)[0].entries
        assert Path(entry.where).read_bytes() == picture()
    with pytest.raises(InputError, match="has no split 'train', but 'test'"):
        listed(tmp_path / "several", tmp_path / "kept")
    with pytest.raises(InputError, match="only whole splits"):
        listed(tmp_path / "several", tmp_path / "kept", split="test[:1]")


@pytest.mark.parametrize(
    ("feature", "suffixes", "ending"), [(datasets.Audio, {".wav", ".flac"}, ".wav"), (datasets.Video, {".mp4"}, ".mp4")]
)
def test_sound_and_clips_are_written_without_being_decoded(tmp_path, feature, suffixes, ending):
    content = b"RIFF....WAVE, as it is" if ending == ".wav" else b"....ftypisom, as it is"
    columns = {"image": inside((None, picture())), "media": inside((None, content))}
    folder = as_parquet(tmp_path / "set", columns, image=datasets.Image(decode=False), media=feature(decode=False))
    [entry] = listed(folder, tmp_path / "kept", kind_of(frozenset(suffixes)))[0].entries
    assert entry.name == f"00000000{ending}"
    assert Path(entry.where).read_bytes() == content


def test_the_column_of_files_has_to_be_clear(tmp_path):
    columns = {name: inside((None, picture(seed=seed))) for seed, name in enumerate(("image", "control"))} | {
        "raw": [picture(seed=7)],
        "text": ["x"],
    }
    folder = as_parquet(tmp_path / "set", columns, image=datasets.Image(decode=False), control=datasets.Image(decode=False))
    with pytest.raises(InputError, match="several columns with files: 'image', 'control'; name the right one in `file_column`"):
        listed(folder, tmp_path / "kept")
    with pytest.raises(InputError, match=r"no column with files of this kind, but 'image' \(Image\).*'text' \(string\)"):
        listed(folder, tmp_path / "kept", kind_of(frozenset({".mp4"})))
    with pytest.raises(InputError, match="has no column 'controll', but 'image'"):
        listed(folder, tmp_path / "kept", file_column="controll")
    with pytest.raises(InputError, match=r"column 'text' of dataset .* holds no files"):
        listed(folder, tmp_path / "kept", file_column="text")
    with pytest.raises(InputError, match=r"has no column 'caption' for captions, but 'image'.*`caption_column`"):
        listed(folder, tmp_path / "kept", kind_of(captions="column", caption_column="caption"), file_column="image")
    for seed, name in ((1, "control"), (7, "raw")):
        [entry] = listed(folder, tmp_path / "kept" / name, file_column=name)[0].entries
        assert Path(entry.where).read_bytes() == picture(seed=seed)


def test_a_dataset_that_cannot_be_loaded_is_told_in_one_message(tmp_path):
    folder = as_parquet(tmp_path / "set", {"image": inside((None, picture()))}, image=datasets.Image(decode=False))
    with pytest.raises(InputError, match='cannot be loaded: Unknown split "trane"'):
        listed(folder, tmp_path / "kept", split="trane")
    with pytest.raises(InputError, match="cannot be loaded: BuilderConfig 'large' not found"):
        listed(folder, tmp_path / "kept", config="large")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        listed(tmp_path / "empty", tmp_path / "kept")


def test_code_of_a_dataset_is_never_run(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        listed(tmp_path / "set", tmp_path / "kept")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("written", ["./gone", "../gone", "/gone/for/ever", "~/gone-for-ever"])
def test_a_folder_that_is_not_there_is_told_and_not_looked_for_on_the_hub(tmp_path, written):
    (tmp_path / "configs").mkdir()
    with pytest.raises(ValidationError, match=r"there is no folder .*gone.*; a dataset of the Hub is named"):
        HubDataset.model_validate({"dataset": written}, context={"base": tmp_path / "configs"})


def test_a_file_instead_of_a_folder_is_told(tmp_path):
    as_parquet(tmp_path / "set", {"image": inside((None, picture()))}, image=datasets.Image(decode=False))
    for written in ("set/train-00000-of-00001.parquet", "./set/train-00000-of-00001.parquet"):
        with pytest.raises(ValidationError, match="is a file; give the folder that it lies in"):
            HubDataset.model_validate({"dataset": written}, context={"base": tmp_path})
    assert HubDataset.model_validate({"dataset": "./set"}, context={"base": tmp_path}).dataset == str(tmp_path / "set")


def test_a_dataset_without_name_is_called_as_on_the_hub():
    assert HfDatasets.dataset_name(HubDataset(dataset="owner/flowers")) == "owner/flowers"

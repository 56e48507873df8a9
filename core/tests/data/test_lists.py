"""File lists in four formats: which files they give, what stands in their columns, and what is told of bad rows."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.tests.data.support import Facts, picture
from tunesmith import InputError
from tunesmith.config.datasets import ImageTable
from tunesmith.data.funnel import Funnel
from tunesmith.data.pictures import ImageKind
from tunesmith.listing.files import list_files


def listed(file, **settings):
    table = ImageTable(path=str(file), **settings)
    funnel = Funnel("set")
    return list_files(table, ImageKind(table, Facts()), file.parent / "kept", funnel), funnel


def told(file, **settings):
    """Names with their columns."""
    return {entry.name: dict(entry.columns) for entry in listed(file, **settings)[0].entries}


def losses(funnel):
    return {lost.reason: (lost.count, lost.examples) for lost in funnel.losses}


def written(file, rows):
    """Rows as a list of the format that the ending says."""
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    elif file.suffix == ".csv":
        cells = [list(rows[0]), *(["" if value is None else f'"{value}"' for value in row.values()] for row in rows)]
        file.write_text("\ufeff" + "".join(",".join(row) + "\n" for row in cells))
    else:
        file.write_text("\n".join(row["file_name"] for row in rows))
    return file


FORMATS = pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".txt"])
TABLES = pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])


@FORMATS
def test_a_list_names_files_below_its_folder_in_any_order(tmp_path, ending):
    for name in ("a.png", "sub/b.png", "unlisted.png"):
        picture(tmp_path / name)
    rows = [{"file_name": name} for name in ("sub/../sub//b.png", str(tmp_path / "a.png"))]
    listing, funnel = listed(written(tmp_path / f"list{ending}", rows))
    assert [(entry.name, entry.where) for entry in listing.entries] == [
        ("a.png", str(tmp_path / "a.png")),
        ("sub/b.png", str(tmp_path / "sub/b.png")),
    ]
    assert (funnel.total, funnel.losses) == (2, ())
    assert listing.homes == (tmp_path,)


@FORMATS
def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path, ending):
    folder = tmp_path / "set"
    for name in ("a.png", "b.gif", "c.dat"):
        picture(tmp_path / "x.png").rename((folder / name) if folder.mkdir(exist_ok=True) is None else tmp_path)
    secret = picture(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    names = ["a.png", "./a.png", "../secret.png", str(secret), "link.png", "linked/secret.png", "gone.png", "b.gif", "c.dat"]
    names += ["http://host/a.png", "sub/../../set/a.png", "."]
    listing, funnel = listed(written(folder / f"list{ending}", [{"file_name": name} for name in names]))
    assert [entry.name for entry in listing.entries] == ["a.png"]
    assert {reason: count for reason, (count, _) in losses(funnel).items()} == {
        "the list names it more than once; its first row counts": 1,
        "it is not below the file list's folder, and nothing else is read": 4,
        "a link that leaves the dataset's folder is not followed": 2,
        "cannot be read (No such file or directory)": 1,
        ".gif is not read; make it .jpeg, .jpg, .png or .webp": 1,
        ".dat is not read, only .jpeg, .jpg, .png or .webp": 1,
        "a URL in a file list is not followed; give the URL of the list or of the folder as the dataset's `path`": 1,
    }
    assert funnel.total == len(names)
    assert funnel.passed("readable") == 1


@TABLES
def test_only_the_columns_that_captions_come_from_are_kept(tmp_path, ending):
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    rows = [{"id": 1, "image": "a.png", "text": "a fox, red", "note": "x"}, {"id": 2, "image": "b.png", "text": "two\nlines", "note": "y"}]
    file = written(tmp_path / f"list{ending}", rows)
    assert told(file, captions="column") == {"a.png": {"text": "a fox, red"}, "b.png": {"text": "two\nlines"}}
    assert told(file, captions="column", caption_column="note") == {"a.png": {"note": "x"}, "b.png": {"note": "y"}}
    assert told(file, captions="filename") == {"a.png": {}, "b.png": {}}


def test_several_captions_stay_a_list_and_what_is_not_a_number_is_nothing(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    pq.write_table(pa.table({"path": ["a.png", "b.png", "c.png"], "caption": [["x", "y"], None, []]}), tmp_path / "list.parquet")
    assert told(tmp_path / "list.parquet", captions="column") == {
        "a.png": {"caption": ["x", "y"]},
        "b.png": {"caption": None},
        "c.png": {"caption": []},
    }
    (tmp_path / "list.jsonl").write_text('{"path": "a.png", "caption": NaN}\n{"path": "b.png"}')
    assert told(tmp_path / "list.jsonl", captions="column") == {"a.png": {"caption": None}, "b.png": {}}
    pq.write_table(pa.table({"path": ["a.png"], "caption": [float("nan")]}), tmp_path / "nan.parquet")
    assert told(tmp_path / "nan.parquet", captions="column") == {"a.png": {"caption": None}}


@TABLES
def test_the_file_column_is_the_first_usual_one_or_the_one_that_is_named(tmp_path, ending):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    file = written(tmp_path / f"list{ending}", [{"video": "a.png", "file_name": "b.png", "mask file": "c.png"}])
    assert list(told(file)) == ["b.png"]
    assert list(told(file, file_column="mask file")) == ["c.png"]


@TABLES
def test_a_missing_column_is_told_with_those_that_are_there(tmp_path, ending):
    picture(tmp_path / "a.png")
    file = written(tmp_path / f"list{ending}", [{"url": "a.png", "size": "1"}])
    with pytest.raises(InputError, match=r"no column that names the files \(file, file_name, path, image, video\); it has 'url', 'size'"):
        listed(file)
    with pytest.raises(InputError, match="no column 'fille'; it has 'url', 'size': name the right one in `file_column`"):
        listed(file, file_column="fille")
    if ending != ".jsonl":  # whose rows may have different keys
        with pytest.raises(InputError, match=r"no column 'caption' or 'text' for captions; it has 'url', 'size'.*`caption_column`"):
            listed(file, file_column="url", captions="column")


def test_a_list_of_lines_has_no_columns(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(InputError, match=r'no columns, so `captions = "column"` needs a .csv, .jsonl or .parquet file'):
        listed(tmp_path / "list.txt", captions="column")
    with pytest.raises(InputError, match="no columns, so `file_column` needs"):
        listed(tmp_path / "list.txt", file_column="a")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_cells_may_be_separated_otherwise(tmp_path, delimiter):
    picture(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(f'file{delimiter}caption\n\na.png{delimiter}"x, y"\n')
    assert told(tmp_path / "list.csv", captions="column") == {"a.png": {"caption": "x, y"}}


def test_bad_rows_of_a_csv_are_named_by_their_lines(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("file,caption\n ,no file\na.png,one, two\na.png\n")
    listing, funnel = listed(tmp_path / "list.csv", captions="column")
    assert [(entry.name, dict(entry.columns)) for entry in listing.entries] == [("a.png", {})]
    assert losses(funnel) == {
        "the row names no file": (1, ["line 2"]),
        "the row has 3 cells for 2 columns; a text with ',' needs quotes": (1, ["line 3"]),
    }


def test_bad_lines_of_a_jsonl_are_named(tmp_path):
    picture(tmp_path / "a.png")
    lines = [
        '{"file": "a.png"}',
        "[1]",
        "{",
        "[" * 100_000,
        '{"file": 3}',
        '{"other": 1}',
        '{"file": "b\\u0000.png"}',
        '{"file": "\\ud800.png"}',
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    listing, funnel = listed(tmp_path / "list.jsonl")
    assert [entry.name for entry in listing.entries] == ["a.png"]
    assert losses(funnel) == {
        "the line is not a JSON object": (3, ["line 2", "line 3", "line 4"]),
        "the row names no file": (2, ["line 5", "line 6"]),
        "its name holds a NUL character": (1, ["line 7: b\0.png"]),
        "its name is not UTF-8; rename it": (1, ["\ud800.png"]),
    }


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_a_list_that_is_not_utf_8_or_has_no_lines_is_refused(tmp_path, ending):
    file = tmp_path / f"list{ending}"
    file.write_bytes(b"file\n" + "käfer.png".encode("latin-1"))
    with pytest.raises(InputError, match="line 2 is not UTF-8; save the list in that encoding"):
        listed(file)
    file.write_bytes(b"file\n" + b"x" * (2**20 + 1))
    with pytest.raises(InputError, match="line 2 is longer than 1 MiB, so this is no file list"):
        listed(file)


def test_a_quotation_mark_that_is_left_open_is_told(tmp_path):
    (tmp_path / "list.csv").write_text('file,caption\na.png,"open\n' + "b.png,more of it\n" * 10_000)
    with pytest.raises(InputError, match="is a quotation mark left open"):
        listed(tmp_path / "list.csv")


def test_an_empty_list_has_no_column_or_no_files(tmp_path):
    (tmp_path / "list.csv").touch()
    (tmp_path / "list.txt").touch()
    with pytest.raises(InputError, match="no columns at all"):
        listed(tmp_path / "list.csv")
    assert listed(tmp_path / "list.txt")[1].total == 0


def test_a_parquet_file_that_holds_pictures_or_is_none_is_refused(tmp_path):
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "a.png"}]}), tmp_path / "pictures.parquet")
    with pytest.raises(InputError, match="column 'image' holds no paths but struct<bytes"):
        listed(tmp_path / "pictures.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"is no sound \.parquet file"):
        listed(tmp_path / "broken.parquet")


def test_without_pyarrow_one_message_says_what_to_install(tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "list.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="needs pyarrow: pip install pyarrow"):
        listed(tmp_path / "list.parquet")


def test_dictionaries_of_texts_are_texts(tmp_path):
    picture(tmp_path / "a.png")
    pq.write_table(pa.table({"image": pa.array(["a.png"]).dictionary_encode()}), tmp_path / "list.parquet")
    assert list(told(tmp_path / "list.parquet")) == ["a.png"]

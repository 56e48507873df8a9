"""Rules of the core's tables that more than one setting takes part in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from tunesmith.config.datasets import ImageTable
from tunesmith.config.faults import validate
from tunesmith.config.tables import CheckpointsTable, FileStem, OptimizerTable, RunTable, ValidationTable, as_stem


@pytest.mark.parametrize(
    ("table", "norm", "value"),
    [({}, 1.0, None), ({"clip_norm": 2.0}, 2.0, None), ({"clip_norm": False}, None, None), ({"clip_value": 0.5}, None, 0.5),
     ({"clip_value": 0.5, "clip_norm": False}, None, 0.5)],
)  # fmt: skip
def test_clipping_is_by_norm_by_value_or_off(table, norm, value):
    made = OptimizerTable(**table)
    assert (made.clip_norm, made.clip_value) == (norm, value)


def test_clipping_both_ways_is_refused():
    with pytest.raises(ValidationError, match="not both"):
        OptimizerTable(clip_norm=1.0, clip_value=1.0)


@pytest.mark.parametrize("table", [CheckpointsTable, ValidationTable])
def test_how_often_is_a_count_or_false(table):
    assert table.model_validate({"every": False}).every is None
    assert table.model_validate({"every": 3}).every == 3
    for wrong in (0, -1):
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            table.model_validate({"every": wrong})


STEMS: TypeAdapter[str] = TypeAdapter(FileStem)


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "0", "x" * 100, "conx", "a.con", "com10"])
def test_names_that_are_file_names_everywhere(name, tmp_path: Path):
    assert STEMS.validate_python(name) == name
    (tmp_path / name).write_text("")
    assert [file.name for file in tmp_path.iterdir()] == [name]


LEAVING = ["", ".", "..", "../a", "a/b", "a\\b", "/a", "~", "$HOME", "-a", "_a", ".a"]
FAILING = ["a\0", "a\n", " a", "a ", "a:b", "a*", "a.", "x" * 101, "ä", "con", "Nul", "COM1.png", "lpt9.a.b"]


@pytest.mark.parametrize("name", [*LEAVING, *FAILING])
def test_names_that_could_leave_the_folder_or_fail_on_some_system_are_refused(name):
    with pytest.raises(ValidationError, match="file name"):
        STEMS.validate_python(name)


@pytest.mark.parametrize("text", ["my photos", "", "ümläut", "..", "con", "a.", "x" * 300, "日本", "COM1"])
def test_any_text_becomes_a_name(text):
    assert STEMS.validate_python(as_stem(text, "run"))


@pytest.mark.parametrize("table", [{"seeds": [1, 2, 1]}, {"resolutions": ["64x64", "64x64"]}], ids=str)
def test_what_would_become_the_same_file_twice_is_refused(table):
    with pytest.raises(ValidationError, match="twice; name it once"):
        ValidationTable.model_validate(table)


@pytest.mark.parametrize("size", ["512x", "x512", "512 x 512", "0x64", "512X512", "-1x5", "512x512\n"])
def test_sizes_are_written_one_way(size):
    assert ValidationTable.model_validate({"resolutions": ["512x768"]}).resolutions == ("512x768",)
    with pytest.raises(ValidationError, match="WIDTHxHEIGHT"):
        ValidationTable.model_validate({"resolutions": [size]})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"resolution": 0.5}, 'should be 8 to 20000 pixels; megapixels need resolution_type = "area"'),
        ({"resolution": 1e9}, "should be 8 to 20000 pixels"),
        ({"resolution": 1024, "resolution_type": "area"}, "should be 0.001 to 400 megapixels"),
    ],
)
def test_a_resolution_in_the_wrong_unit_is_told(settings, complaint):
    with pytest.raises(ValidationError, match=re.escape(complaint)):
        ImageTable.model_validate({"path": "somewhere", **settings})
    assert ImageTable.model_validate({"path": "somewhere", "resolution": 0.5, "resolution_type": "area"}).resolution == 0.5


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_a_device_may_be_one_that_this_machine_lacks(device):
    assert RunTable(steps=1, device=device).device == device


@pytest.mark.parametrize("device", ["gpu", "cuda0", "", "cpu:x"])
def test_what_is_no_device_is_told_before_a_plugin_looks_at_it(device):
    with pytest.raises(ValidationError, match="this is no torch device; write auto, cpu, cuda, cuda:1 or mps"):
        RunTable(steps=1, device=device)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("compile", True, "compile = true: should be false or 'blocks'"),
        ("gradient_checkpointing", -1, "gradient_checkpointing = -1: should be true or false or at least 2"),
    ],
)
def test_what_is_allowed_is_said_as_toml_writes_it(setting, value, told):
    assert validate(RunTable, {"steps": 1, setting: value}, Path()) == (None, [((setting,), told)])

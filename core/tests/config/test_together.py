"""What datasets must agree on among themselves, and settings of theirs that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config import ConfigErrors, load_config

HEAD = '[run]\n{length}\n[model]\nfamily = "toyfamily"\n'
FIRST = 5
"""The line of the first dataset's header."""


@pytest.fixture
def told(toy, tmp_path: Path):
    """What is wrong with a config of these datasets, each the lines of its table."""

    def told(*datasets: str, length: str = "steps = 100") -> list[str]:
        path = tmp_path / "c.toml"
        path.write_text(HEAD.format(length=length) + "".join(f"[[datasets]]\n{lines}\n" for lines in datasets))
        try:
            load_config(path)
        except ConfigErrors as errors:
            return [line.removeprefix(f"{path}:") for line in str(errors).splitlines()]
        return []

    return told


MASKS = "kind = 'mask'\npath = 'masks'\nof = '{of}'"


def test_masks_belong_to_a_dataset_with_samples_and_each_dataset_has_one_of_them(told):
    assert told("path = 'a'", MASKS.format(of="a")) == []
    [line] = told("name = 'photos'\npath = 'a'", MASKS.format(of="photo"))
    assert line == "11: [[datasets]] of = 'photo': there is no dataset of that name with samples of its own; did you mean 'photos'?"
    [line] = told("path = 'a'", MASKS.format(of="a"), MASKS.format(of="a") + "\nname = 'more'")
    assert line == "14: [[datasets]] dataset 'a' has its mask dataset already, number 2"
    assert any("there is none with samples of its own" in line for line in told(MASKS.format(of="a")))


def test_two_datasets_of_one_folder_name_need_names(told):
    [line] = told("path = 'a'", "path = 'b/A'")
    assert line == "7: [[datasets]] name 'A' is taken by dataset number 1; set name = ... to tell them apart"
    assert told("path = 'a'", "path = 'b/A'\nname = 'other'") == []


def test_all_datasets_have_a_weight_or_none(told):
    [line] = told("path = 'a'\nweight = 2", "path = 'b'")
    assert line == "8: [[datasets]] has no `weight`, but another dataset has; give every dataset one, or none"
    assert told("path = 'a'\nweight = 2", "path = 'b'\nweight = 0.5") == []


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ("end_step = 50", "start_step = 50", None),
        ("end_step = 60", "start_step = 50\nend_step = 100", None),
        ("end_step = 50", "start_step = 51", "10: [[datasets]] no dataset is there between step 50, where dataset number 1 goes"),
        ("start_step = 1", "start_step = 2", "7: [[datasets]] no dataset is there before step 1; at every step there must be one"),
        ("end_step = 50", "end_step = 99", "10: [[datasets]] end_step = 99: no dataset is there from then on, and the run has 100 steps"),
        ("end_step = 50", "end_step = 100", None),
    ],
)  # fmt: skip
def test_at_every_step_there_is_a_dataset(told, first, second, complaint):
    lines = told(f"path = 'a'\n{first}", f"path = 'b'\n{second}")
    assert (not lines) if complaint is None else lines[0].startswith(complaint)


def test_a_length_in_epochs_and_datasets_that_come_and_go_are_refused(told):
    for setting in ("start_step = 0", "end_step = 9"):
        [line] = told(f"path = 'a'\n{setting}", "path = 'b'", length="epochs = 2")
        key = setting.partition(" ")[0]
        assert line == f"7: [[datasets]] {key} counts optimizer steps, and then an epoch has no length; give [run] steps instead of epochs"
    assert told("path = 'a'", length="epochs = 2") == []


@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize("setting", ["delete_problematic_images = true", "delete_unwanted_images = false"])
def test_settings_that_delete_files_are_refused_with_the_reason(told, kind, setting):
    table = {"image": "path = 'a'", "mask": MASKS.format(of="b")}[kind]
    [line] = told(f"{setting}\n{table}", "path = 'b'")
    key = setting.partition(" ")[0]
    assert line.startswith(f"{FIRST + 1}: [[datasets]] {key} is refused: Tunesmith never deletes or changes a file of yours")


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ("['s/(/x/']", "'s/(/x/' is no regular expression with its replacement (missing ), unterminated subpattern at position 0)"),
        ("['s/a/\\\\1/']", "is no regular expression with its replacement (invalid group reference 1 at position 1)"),
        ("['s/a/\\\\g<x>/']", "is no regular expression with its replacement (unknown group name 'x')"),
        ("['s/a/b']", "'s/a/b' begins as a replacement does and should be s/PATTERN/TEXT/"),
        ("['s//b/']", "'s//b/' begins as a replacement does"),
        ("'nowhere.txt'", "nowhere.txt is not there"),
        ("'.'", "is no file"),
    ],
)  # fmt: skip
def test_a_bad_caption_filter_is_told_at_its_line(told, entries, complaint):
    entries = entries.replace("\\\\", "\\")
    [line] = told(f"path = 'a'\ncaption_filter = {entries}")
    assert line.startswith(f"{FIRST + 2}: [[datasets]] caption_filter = ")
    assert complaint in line


def test_a_caption_filter_in_a_file_is_read_with_the_config(told, tmp_path):
    (tmp_path / "filter.txt").write_text("watermark\n\ns/[0-9]+/many/\n")
    assert told("path = 'a'\ncaption_filter = 'filter.txt'") == []
    (tmp_path / "filter.txt").write_text("s/[/x/\n")
    [line] = told("path = 'a'\ncaption_filter = 'filter.txt'")
    assert "'s/[/x/' is no regular expression" in line
    (tmp_path / "filter.txt").write_bytes(b"\xff")
    [line] = told("path = 'a'\ncaption_filter = 'filter.txt'")
    assert "is not UTF-8 text" in line

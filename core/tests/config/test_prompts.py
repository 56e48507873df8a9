"""Validation prompts come from the table and from a JSON file, and every nickname is one safe file name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.config.problems import Findings, Source
from tunesmith.config.prompts import read_prompts
from tunesmith.config.tables import ValidationTable


def read(tmp_path: Path, content: str | bytes | None, **prompts: str) -> tuple[dict[str, str], list[str]]:
    file = tmp_path / "p.json"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = ValidationTable.model_validate({"prompts": prompts, "prompts_file": file})
    findings = Findings(Source(Path("c.toml"), {("validation", "prompts_file"): 4, ("validation", "prompts"): 5}))
    found = read_prompts(table, findings)
    return found, [str(problem).replace(f"{tmp_path}/", "") for problem in findings.problems]


def test_table_and_file_are_one_in_that_order(tmp_path):
    found, problems = read(tmp_path, '{"dog": "a dog", "bird": "a bird"}', cat="a cat")
    assert list(found.items()) == [("cat", "a cat"), ("dog", "a dog"), ("bird", "a bird")]
    assert problems == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read p.json: No such file or directory"),
        ("[", "p.json is not valid JSON: Expecting value: line 1 column 2 (char 1)"),
        (b"\xff", "p.json is not valid JSON: 'utf-8' codec can't decode"),
        ("[" * 200_000, "p.json is not valid JSON: "),
        ("[]", 'p.json should hold one JSON object, such as {"nickname": "a prompt"}'),
        ('{"../x": "a"}', "p.json: nickname '../x': it becomes a file name"),
        ('{"x": 3}', "p.json: the prompt of 'x' should be text"),
        ('{"x": {"y": "z"}}', "p.json: the prompt of 'x' should be text"),
        ('{"x": "a", "x": "b"}', "p.json: nickname 'x' is there twice"),
        ('{"CAT": "a"}', "p.json: nickname 'CAT' is there twice, also as 'cat', and case does not count"),
    ],
)
def test_what_is_wrong_with_the_file(tmp_path, content, problem):
    _, [told] = read(tmp_path, content, cat="a cat")
    assert told.startswith(f"c.toml:4: [validation] {problem}")
    assert "\n" not in told


def test_a_file_name_cannot_act_on_the_terminal():
    findings = Findings(Source(Path("c.toml"), {}))
    read_prompts(ValidationTable.model_validate({"prompts_file": Path("/none/\x1b[31m")}), findings)
    assert str(findings.problems[0]).endswith("cannot read /none/\\x1b[31m: No such file or directory")


def test_two_nicknames_of_the_table_that_are_one_file(tmp_path):
    _, [told] = read(tmp_path, "{}", cat="a", Cat="b")
    assert told == "c.toml:5: [validation] nickname 'Cat' is there twice, also as 'cat', and case does not count"

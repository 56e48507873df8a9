"""What no file of the repository says: where it was written, and what was left for later."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.house import ROOT, files, shown

MACHINE_PATH = re.compile(r"(?<![\w.:/~$}])/(home|root|Users|mnt|work|srv|opt)/\w")
LEFT_FOR_LATER = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X)\b")


def text_files() -> list[tuple[Path, str]]:
    wanted = {".py", ".md", ".toml", ".txt", ".sh", ".json", ""}
    return [(path, path.read_text()) for path in files() if path.suffix in wanted and path.stat().st_size < 1_000_000]


def places(pattern: re.Pattern[str]) -> list[str]:
    return [shown(path, number) for path, text in text_files() for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


@pytest.mark.parametrize("folder", ["home", "work"])
def test_the_pattern_knows_a_path_of_a_machine(folder: str) -> None:
    assert MACHINE_PATH.search(f"open('/{folder}/someone/file')")
    assert not MACHINE_PATH.search(f"https://example.org/{folder}/page ./{folder}/x")


def test_no_file_names_a_path_of_one_machine() -> None:
    assert places(MACHINE_PATH) == []


def test_nothing_is_left_for_later() -> None:
    assert places(LEFT_FOR_LATER) == []


def test_ci_runs_check_and_test() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make check test" in script.read_text()

"""A file over 400 lines or a function over 60 is a room that wants a wall."""

from __future__ import annotations

import ast

from tests.house import packages, parsed, shown

FILE_LINES, FUNCTION_LINES = 400, 60
LONG_FILES: dict[str, str] = {}
"""Files that are longer, each with the reason."""
LONG_FUNCTIONS: dict[str, str] = {}
"""Functions that are longer, as `file:name`, each with the reason."""


def long_files() -> dict[str, int]:
    lengths = {shown(path): len(path.read_text().splitlines()) for package in packages() for path in package.sources}
    return {name: length for name, length in lengths.items() if length > FILE_LINES}


def long_functions() -> dict[str, int]:
    found = {}
    for path in [path for package in packages() for path in package.sources]:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    found[f"{shown(path)}:{node.name}"] = length
    return found


def test_files_are_short_or_have_a_reason() -> None:
    assert {name: length for name, length in long_files().items() if name not in LONG_FILES} == {}


def test_functions_are_short_or_have_a_reason() -> None:
    assert {name: length for name, length in long_functions().items() if name not in LONG_FUNCTIONS} == {}


def test_no_exception_outlives_its_reason() -> None:
    assert set(LONG_FILES) <= set(long_files())
    assert set(LONG_FUNCTIONS) <= set(long_functions())

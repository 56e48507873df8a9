"""The index of lines has exactly the keys that tomllib reads, each on the line where it was written."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.config.lines import Key, index


def paths(value: Any, path: Key = ()) -> Iterator[Key]:
    """Every path of a parsed document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, child in children:
        yield (*path, part)
        yield from paths(child, (*path, part))


EXAMPLE = '''# comment with = and [brackets]
title = "a # no comment"      # 2
a.b.c = 1                     # 3
a."b d".'e.f' = 2             # 4
text = """
[not.a.table]
x = 1 \\""" still
ends with a quote""""
raw = \'\'\'
key = 'value'
[[x]]\'\'\'
numbers = [ 1, # one
  [2, 3],
  { deep = [4,
5] }, """6
7""",
]
inline = { x = 1, "y z" = [ {q.r = 2} ], w = {} }
date = 1979-05-27 07:32:00
empty = ""
blank = """"""

[table]
  [ table . "sub.table" ]
  key = 1

[[array]]
[array.implied.table]
[[array]]
name = 'x'
[[array.nested]]
[[array.nested]]
y = true
[array.settings]
z = -inf
'''


def test_every_kind_of_key_is_found_on_its_line():
    lines = index(EXAMPLE)
    assert set(lines) == set(paths(tomllib.loads(EXAMPLE)))
    assert {key: lines[key] for key in EXPECTED} == EXPECTED


EXPECTED: dict[Key, int] = {
    ("title",): 2,
    ("a",): 3,
    ("a", "b"): 3,
    ("a", "b", "c"): 3,
    ("a", "b d"): 4,
    ("a", "b d", "e.f"): 4,
    ("text",): 5,
    ("raw",): 9,
    ("numbers",): 12,
    ("numbers", 0): 12,
    ("numbers", 1): 13,
    ("numbers", 1, 1): 13,
    ("numbers", 2): 14,
    ("numbers", 2, "deep", 1): 15,
    ("numbers", 3): 15,
    ("inline", "y z", 0, "q", "r"): 18,
    ("date",): 19,
    ("blank",): 21,
    ("table",): 23,
    ("table", "sub.table"): 24,
    ("table", "sub.table", "key"): 25,
    ("array",): 27,
    ("array", 0): 27,
    ("array", 0, "implied"): 28,
    ("array", 0, "implied", "table"): 28,
    ("array", 1): 29,
    ("array", 1, "name"): 30,
    ("array", 1, "nested"): 31,
    ("array", 1, "nested", 0): 31,
    ("array", 1, "nested", 1): 32,
    ("array", 1, "nested", 1, "y"): 33,
    ("array", 1, "settings"): 34,
    ("array", 1, "settings", "z"): 35,
}


def test_a_table_stands_where_its_own_header_is_and_not_where_it_was_first_implied():
    assert index("[a.b]\nx = 1\n[a]\ny = 2\n")[("a",)] == 3


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "a=1", "a=[]", "a={}", "[a]", "[[a]]", "a=''''''", "a='''''x'''''"])
def test_short_documents(text: str):
    assert set(index(text)) == set(paths(tomllib.loads(text)))


def test_windows_line_ends_are_counted_once():
    text = EXAMPLE.replace("\n", "\r\n")
    assert index(text) == index(EXAMPLE)


def test_every_config_of_the_repository_is_indexed_like_tomllib_reads_it():
    files = [*Path(__file__).parents[3].glob("examples/**/*.toml"), *Path(__file__).parents[3].glob("*/**/pyproject.toml")]
    assert files
    for file in files:
        text = file.read_text()
        assert set(index(text)) == set(paths(tomllib.loads(text))), file


NAMES = st.sampled_from(["a", "b-1", "C_2", "3", "d e", "f.g", 'h"i', "j'k", "", "[l]", "ü#=", "m\\n"])
CONTENT = st.text(st.sampled_from(list("ab \"'\\[]{}#=,.\n\t")), max_size=12)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def written(name: str) -> str:
    return name if name and all(letter in "abcCdefgh-_0123456789" for letter in name) else quoted(name)


def multiline(text: str) -> str:
    return '"""\n' + text.replace("\\", "\\\\").replace('"""', '""\\"').rstrip('"') + '"""'


SCALARS = st.one_of(
    st.integers(-5, 10**6).map(str),
    st.sampled_from(["true", "1e3", "inf", "1979-05-27 07:32:00", "07:32:00", "0x_f".replace("_", "")]),
    CONTENT.map(quoted),
    CONTENT.map(multiline),
    CONTENT.filter(lambda text: "'" not in text).map(lambda text: f"'''{text}'''"),
)
GAPS = st.sampled_from(["", " ", "\n", " # [x] = 'y\n", "\n\n\t"])


@st.composite
def values(draw: st.DrawFn, path: Key, line: int, where: dict[Key, int], depth: int = 0, one_line: bool = False) -> str:
    """The text of a value that starts on `line`; notes in `where` the lines of all that is in it."""
    kind = draw(st.sampled_from(["scalar", "scalar", "array", "table"] if depth < 3 else ["scalar"]))
    if kind == "scalar":
        return draw(SCALARS)
    text = "[" if kind == "array" else "{"
    gaps = st.just(" ") if one_line or kind == "table" else GAPS
    keys = draw(st.lists(NAMES, max_size=3, unique=True))
    for number, name in enumerate(keys):
        text += draw(gaps)
        at = line + text.count("\n")
        inner = (*path, number if kind == "array" else name)
        where[inner] = at
        if kind == "table":
            text += f"{written(name)} = "
        text += draw(values(inner, at, where, depth + 1, one_line or kind == "table"))
        text += "," if number < len(keys) - 1 else ""
    text += draw(gaps) if keys else ""
    return text + ("]" if kind == "array" else "}")


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Key, int]]:
    """A document of tables, arrays of tables and settings, with the line of every key as it was written."""
    text = ""
    where: dict[Key, int] = {}
    counts: dict[str, int] = {}
    single: set[str] = set()

    def settings_below(path: Key) -> None:
        nonlocal text
        for name in draw(st.lists(NAMES, max_size=3, unique=True)):
            text += draw(GAPS).rstrip(" \t") if draw(st.booleans()) else ""
            text += "" if not text or text.endswith("\n") else "\n"
            line = text.count("\n") + 1
            parts = [name, *draw(st.lists(NAMES, max_size=1))]
            for length in range(1, len(parts) + 1):
                where[(*path, *parts[:length])] = line
            text += " . ".join(map(written, parts)) + " = "
            text += draw(values((*path, *parts), line, where)) + draw(st.sampled_from(["\n", " # end\n"]))

    settings_below(())
    top = {key[0] for key in where}
    for name in draw(st.lists(NAMES, max_size=5)):
        if name in top or name in single:
            continue
        text += "" if not text or text.endswith("\n") else "\n"
        line = text.count("\n") + 1
        if name in counts or draw(st.booleans()):
            where.setdefault((name,), line)
            path: Key = (name, counts.get(name, 0))
            counts[name] = counts.get(name, 0) + 1
            text += f"[[{written(name)}]]\n"
        else:
            single.add(name)
            path = (name,)
            text += f"  [ {written(name)} ]  # header\n"
        where[path] = line
        settings_below(path)
    return text, where


@settings(max_examples=150, deadline=None)
@given(documents())
def test_every_key_of_any_document_is_where_it_was_written(document: tuple[str, dict[Key, int]]):
    text, where = document
    assert set(paths(tomllib.loads(text))) == set(where)
    assert index(text) == where

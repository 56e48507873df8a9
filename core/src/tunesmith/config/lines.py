"""Where in a TOML text each key stands, which tomllib does not tell."""

from __future__ import annotations

import bisect
import re
import tomllib
from typing import TypeAlias

Key: TypeAlias = tuple[str | int, ...]
"""The path of a table, a setting or an array's element; elements, also of arrays of tables, are numbered from 0."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SEPARATORS = re.compile(r"(?:[ \t\r\n,]|#[^\n]*)*")
_KEY_PART = re.compile(r"[ \t]*(?:(?P<bare>[A-Za-z0-9_-]+)|(?P<quoted>\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'))[ \t]*(?P<dot>\.?)")
_SCALAR = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})'  # up to two quotes more may end the content
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|[^,\]}\n#]+",
    re.DOTALL,
)


def index(text: str) -> dict[Key, int]:
    """The line, from 1, of every table, setting and array element of a valid TOML text.

    A table that only deeper headers or dotted keys imply stands where it is first implied. What is no valid TOML has
    been refused by tomllib before.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Key, int] = {}
        self._arrays: dict[Key, int] = {}  # how many tables an array of tables has so far
        self._newlines = [match.start() for match in re.finditer("\n", text)]

    def document(self) -> None:
        """Go through the whole text and note the line of each key."""
        table: Key = ()
        while self._skip(_BLANK):
            if self.text.startswith("[", self.at):
                table = self._header()
            else:
                self._setting(table)

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Go past what the pattern matches; whether anything is left."""
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at < len(self.text)

    def _line(self) -> int:
        return bisect.bisect_left(self._newlines, self.at) + 1

    def _header(self) -> Key:
        line = self._line()
        is_array = self.text.startswith("[[", self.at)
        self.at += 1 + is_array
        parts = self._key()
        self.at += 1 + is_array
        path: Key = ()
        for part in parts[:-1]:
            path = self._last((*path, part), line)
        path = (*path, parts[-1])
        if is_array:
            self.lines.setdefault(path, line)
            self._arrays[path] = self._arrays.get(path, 0) + 1
            path = (*path, self._arrays[path] - 1)
        self.lines[path] = line
        return path

    def _last(self, path: Key, line: int) -> Key:
        """A table on the way to a header's own, in an array of tables the last one."""
        self.lines.setdefault(path, line)
        return (*path, self._arrays[path] - 1) if path in self._arrays else path

    def _key(self) -> list[str]:
        parts: list[str] = []
        while match := _KEY_PART.match(self.text, self.at):
            self.at = match.end()
            quoted = match["quoted"]
            parts.append(tomllib.loads(f"key = {quoted}")["key"] if quoted else match["bare"])
            if not match["dot"]:
                break
        return parts

    def _setting(self, table: Key) -> None:
        line = self._line()
        parts = self._key()
        path = table
        for part in parts[:-1]:
            path = (*path, part)
            self.lines.setdefault(path, line)
        path = (*path, parts[-1])
        self.lines[path] = line
        self.at += 1  # the sign of equality
        self._value(path)

    def _value(self, path: Key) -> None:
        self._skip(_BLANK)
        opening = self.text[self.at]
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: Key) -> None:
        self.at += 1
        number = 0
        while self._skip(_SEPARATORS) and self.text[self.at] != "]":
            self.lines[(*path, number)] = self._line()
            self._value((*path, number))
            number += 1
        self.at += 1

    def _inline_table(self, path: Key) -> None:
        self.at += 1
        while self._skip(_SEPARATORS) and self.text[self.at] != "}":
            self._setting(path)
        self.at += 1

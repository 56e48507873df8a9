"""pydantic's errors, said in the words of the config file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..plugin import Settings
from ..words import bare, nearest, shown, unknown
from .lines import Key

M = TypeVar("M", bound=Settings)
Fault: TypeAlias = tuple[Key, str]
"""A key below a table, and what is wrong there."""

_QUOTED = re.compile(r"'([^']*)'")
_FLAG = re.compile(r"\b(?:True|False)\b(?!')")
_WORDS: dict[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "should be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "should be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "should be true or false"),
    **dict.fromkeys(("string_type", "path_type"), "should be text in quotes"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "should be an array, in brackets"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "should be a table"),
    "finite_number": "should be a finite number",
    "greater_than": "should be greater than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be at most {le}",
    "multiple_of": "should be a multiple of {multiple_of}",
    "too_short": "should have {min_length} or more entries",
    "too_long": "should have {max_length} or fewer entries",
    "string_too_short": "should have {min_length} or more characters",
    "string_too_long": "should have {max_length} or fewer characters",
    "string_pattern_mismatch": "should look like {pattern}",
    "literal_error": "should be {expected}",
    "enum": "should be {expected}",
    "value_error": "{error}",
    "assertion_error": "{error}",
}


def validate(kind: type[M], data: Mapping[str, Any], base: Path) -> tuple[M | None, list[Fault]]:
    """The settings of a table, or None and all that is wrong with it, one fault per key.

    Paths are taken relative to `base`. What a setting's own validator says in a ValueError is told word for word.
    """
    try:
        settings = kind.model_validate(dict(data), context={"base": base})
    except ValidationError as error:
        return None, [*_faults(error, kind, data), *_rules_broken(error, kind, data, base)]
    return settings, []


def not_a_table(value: object, header: str) -> str:
    """What to say where a table should be and something else is."""
    return f"{shown(value)} stands where a table should be; write {header} and its settings below it"


def _rules_broken(error: ValidationError, kind: type[Settings], data: Mapping[str, Any], base: Path) -> Iterator[Fault]:
    """Rules over several settings, which pydantic looks at only where each setting is right by itself.

    Where all that is wrong are unknown names, each is read as the nearest known one, and the rules are looked at again.
    """
    details = error.errors(include_url=False)
    if any(detail["type"] != "extra_forbidden" or len(detail["loc"]) > 1 for detail in details):
        return
    strange = {str(detail["loc"][0]) for detail in details}
    meant = {name: value for name, value in data.items() if name not in strange}
    for name in sorted(strange):
        near = nearest(name, kind.model_fields)
        if near is not None:
            meant.setdefault(near, data[name])
    try:
        kind.model_validate(meant, context={"base": base})
    except ValidationError as again:
        yield from (fault for fault in _faults(again, kind, meant) if not fault[0])


def _faults(error: ValidationError, kind: type[Settings], data: Mapping[str, Any]) -> Iterator[Fault]:
    by_key: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_key.setdefault(_key(detail, data), []).append(detail)
    for key in [key for key, details in by_key.items() if details[0]["type"] == "too_short"]:
        if any(other[: len(key)] == key and len(other) > len(key) for other in by_key):
            del by_key[key]  # entries that are wrong themselves are not counted, and so told as too few
    for key, details in by_key.items():
        yield key, _sentence(key, details, kind)


def _key(detail: ErrorDetails, data: Mapping[str, Any]) -> Key:
    """The part of pydantic's location that the file has; the rest names alternatives of a type."""
    key: Key = ()
    here: Any = data
    for part in detail["loc"]:
        is_there = part in here if isinstance(here, Mapping) else isinstance(here, list) and isinstance(part, int) and part < len(here)
        if not is_there:
            break
        here, key = here[part], (*key, part)
    if detail["type"] == "missing" and detail["loc"] == (*key, detail["loc"][-1]):
        return detail["loc"]
    return key


def _sentence(key: Key, details: list[ErrorDetails], kind: type[Settings]) -> str:
    first = details[0]
    if first["type"] == "missing":
        field = _model_at(kind, key[:-1]).model_fields.get(str(key[-1]))
        meaning = " ".join((field.description or "").split()) if field else ""
        return f"missing setting {_path(key)!r}" + (f": {meaning}" if meaning else "")
    if first["type"] == "extra_forbidden":
        table, name = _model_at(kind, key[:-1]), str(key[-1])
        if issubclass(table, Settings) and name in table.refused_keys:
            return f"{_path(key)} is refused: {table.refused_keys[name]}"
        within = f" in {_path(key[:-1])}" if len(key) > 1 else ""
        return unknown("setting", name, table.model_fields) + within
    words = _joined(details)
    if not key:
        return words
    if first["loc"][-1] == "[key]":
        return f"{_path(key[:-1])}: name {shown(key[-1])}: {words}"
    value = first["input"]
    subject = _path(key) if isinstance(value, Mapping) else f"{_path(key)} = {shown(value)}"
    allowed = [name for detail in details for name in _allowed(detail)]
    near = nearest(value, allowed) if isinstance(value, str) else None
    return f"{subject}: {words}" + (f"; did you mean {near!r}?" if near else "")


def _joined(details: list[ErrorDetails]) -> str:
    """What is allowed; where a setting has several types, all of them."""
    sentences = list(dict.fromkeys(map(_words, details)))
    return " or ".join([sentences[0], *(sentence.removeprefix("should be ") for sentence in sentences[1:])])


def _words(detail: ErrorDetails) -> str:
    template = _WORDS.get(detail["type"])
    if template is None:
        return " ".join((detail["msg"][:1].lower() + detail["msg"][1:]).split())
    facts = {name: int(fact) if isinstance(fact, float) and fact.is_integer() else fact for name, fact in detail.get("ctx", {}).items()}
    if "expected" in facts:
        facts["expected"] = _FLAG.sub(lambda found: found[0].lower(), str(facts["expected"]))
    return " ".join(template.format(**facts).split())


def _allowed(detail: ErrorDetails) -> list[str]:
    return _QUOTED.findall(detail["ctx"]["expected"]) if detail["type"] in ("literal_error", "enum") else []


def _model_at(kind: type[BaseModel], key: Key) -> type[BaseModel]:
    """The settings that the table at `key` is described by."""
    for part in key:
        field = kind.model_fields.get(str(part))
        if field is not None:
            kind = next(_models(field.annotation), kind)
    return kind


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _path(key: Key) -> str:
    """A key within its table, as a person would write it: `prompts.cat`, `seeds[0]`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{bare(part)}"
    return text.removeprefix(".")

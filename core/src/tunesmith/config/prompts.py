"""`[validation]`: the prompts of the table and of its file, together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..words import printable, shown
from .problems import Findings
from .tables import FileStem, ValidationTable

_STEMS: TypeAdapter[str] = TypeAdapter(FileStem)


def read_prompts(table: ValidationTable, findings: Findings) -> dict[str, str]:
    """Every nickname with its prompt; what is wrong with the file or with two nicknames goes to `findings`.

    Nicknames and the names of samples become file names, so two that differ only in case are one.
    """
    prompts: dict[str, str] = {}
    taken: dict[str, str] = {}
    sources = [(("validation", "prompts", name), name, prompt) for name, prompt in table.prompts.items()]
    from_file = [] if table.prompts_file is None else _read(table.prompts_file, findings)
    for key, name, prompt in [*sources, *((("validation", "prompts_file"), *pair) for pair in from_file)]:
        if name.lower() in taken:
            where = f"{printable(str(table.prompts_file))}: " if key[-1] == "prompts_file" else ""
            earlier = taken[name.lower()]
            other = "" if name == earlier else f", also as {earlier!r}, and case does not count"
            findings.add(key, f"{where}nickname {name!r} is there twice{other}")
            continue
        taken[name.lower()] = name
        prompts[name] = prompt
    for number, sample in enumerate(table.samples):
        if sample.name.lower() in taken:
            twice = f"number {number + 1}: name {sample.name!r} is there twice; case does not count"
            findings.add(("validation", "samples", number, "name"), twice)
        taken.setdefault(sample.name.lower(), sample.name)
    return prompts


def _read(file: Path, findings: Findings) -> list[tuple[str, str]]:
    """The nicknames and prompts of a JSON file that are right, in their order, duplicates too."""
    key, told = ("validation", "prompts_file"), printable(str(file))
    try:
        text = file.read_bytes().decode("utf-8-sig")
        parsed: Any = json.loads(text, object_pairs_hook=_Pairs)
    except OSError as error:
        findings.add(key, f"cannot read {told}: {error.strerror}")
        return []
    except (ValueError, RecursionError) as error:
        findings.add(key, f"{told} is not valid JSON: {error}")
        return []
    if not isinstance(parsed, _Pairs):
        findings.add(key, f'{told} should hold one JSON object, such as {{"nickname": "a prompt"}}')
        return []
    good: list[tuple[str, str]] = []
    for name, prompt in parsed:
        try:
            good.append((_STEMS.validate_python(name), prompt))
        except ValidationError as error:
            findings.add(key, f"{told}: nickname {shown(name)}: {error.errors()[0]['ctx']['error']}")
        if not isinstance(prompt, str):
            findings.add(key, f"{told}: the prompt of {shown(name)} should be text")
    return good


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its duplicates."""

"""Writes docs/config.md, the reference of all settings, from the types that check them, and docs/combinations.md: python docs/generate.py.

With `fits`, and families if not all are meant, it writes docs/fits.md instead, which takes minutes for each family. Run it from an
environment in which the plugins of this repository are installed; a test compares the pages with the code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from tunesmith import KindPlugin, Plugin, Settings, SourcePlugin
from tunesmith.config.datasets import CORE_TABLES
from tunesmith.config.load import SINGLE_TABLES
from tunesmith.config.tables import CheckpointsTable
from tunesmith.discovery import DISTRIBUTION, catalogue, installed, load_class
from tunesmith.family import FamilyPlugin

PAGE = Path(__file__).with_name("config.md")
OFF = next(mark for mark in CheckpointsTable.model_fields["every"].metadata if isinstance(mark, BeforeValidator))
"""What marks a setting that `false` switches off."""
INTRODUCTION = """\
<!-- written by docs/generate.py from the types of the settings: change their docstrings, not this page -->

# Config reference

One TOML file describes a run. Every table and setting is here, with what it takes, what it is when left out, and what it means;
[concepts](concepts.md) says how they belong together. Unknown keys are errors, and everything that is wrong is told at once, with its
line. Any setting can be given on the command line: `tune run config.toml --set run.steps=10`. For editors: `tune schema`.

The tables `[run]`, `[model]` and at least one `[[datasets]]` must be there. Paths to read are relative to the config file, folders to
write to are relative to where `tune` is started.
"""
PLUGIN = """\
Any plugin's table also takes `enabled`, true or false (default `true`): whether the plugin takes part. Without its table it does not.
"""
WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "array": "list", "object": "table"}
BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
LARGE = 10**9
"""Bounds from here on keep out what nobody would write, and are left out."""


def page() -> str:
    """The whole page."""
    classes = official()
    families = {name: plugin for name, plugin in classes.items() if issubclass(plugin, FamilyPlugin)}
    parts = [INTRODUCTION, *(section(kind) for kind in (SINGLE_TABLES["run"],))]
    parts += [section(plugin.settings_type, {"family": f'`"{name}"`'}) for name, plugin in families.items()]
    parts += [section(table) for table in datasets(classes)]
    for name, kind in SINGLE_TABLES.items():
        parts += [section(table) for table in (kind, *nested(kind)) if name != "run"]
    parts.append(PLUGIN)
    own = {name: plugin.settings_type for name, plugin in classes.items() if name not in families}
    parts += [section(one) for settings in own.values() for one in (settings, *nested(settings)) if one.model_fields]
    return "\n".join(parts)


def official() -> dict[str, type[Plugin[Any]]]:
    """The plugins of this repository by name."""
    distributions = {f"{DISTRIBUTION}-{extra}" for extra in catalogue().values()}
    return {name: load_class(name) for name, [plugin, *_] in installed().items() if plugin.distribution in distributions}


def datasets(classes: Mapping[str, type[Plugin[Any]]]) -> Iterator[type[Settings]]:
    """The tables of all kinds of datasets, then the settings of their sources."""
    yield from CORE_TABLES.values()
    yield from dict.fromkeys(inner for table in CORE_TABLES.values() for inner in nested(table))
    yield from (plugin.kind.table_type for plugin in classes.values() if issubclass(plugin, KindPlugin))
    yield from (plugin.source_type for plugin in classes.values() if issubclass(plugin, SourcePlugin))


def nested(table: type[Settings]) -> Iterator[type[Settings]]:
    """The tables that settings of a table take, such as those of a `[[...]]` within it."""
    for field in table.model_fields.values():
        yield from (kind for kind in parts_of(field.annotation) if isinstance(kind, type) and issubclass(kind, Settings))


def parts_of(annotation: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield annotation
    for inner in get_args(annotation):
        yield from parts_of(inner)


def section(table: type[Settings], fixed: Mapping[str, str] | None = None) -> str:
    """One table: its heading and purpose from the docstring, a row for each setting."""
    heading, _, purpose = " ".join((table.__doc__ or "").split()).partition(": ")
    described = table.model_json_schema()
    rows = ["| setting | takes | default | meaning |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {value} | required | Names the plugin that brings the model. |" for name, value in (fixed or {}).items()]
    for name, field in table.model_fields.items():
        takes = " or ".join(kinds(described["properties"][name], described.get("$defs", {})))
        off = " or `false`" if OFF in field.metadata else ""
        cells = (f"`{name}`", takes + off, default(field), field.description or "")
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return f"## {heading}\n\n{purpose[:1].upper()}{purpose[1:]}\n\n" + "\n".join(rows) + "\n"


def kinds(schema: Mapping[str, Any], defined: Mapping[str, Any]) -> Iterator[str]:
    """What a setting takes, in words, one for each alternative."""
    if "$ref" in schema:
        schema = defined[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        for alternative in schema["anyOf"]:
            yield from kinds(alternative, defined)
    elif "enum" in schema:
        yield ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    elif "const" in schema:
        yield f"`{json.dumps(schema['const'])}`"
    elif schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        yield f"list of {' or '.join(kinds(schema['items'], defined))}"
    elif schema.get("type") != "null":
        bounds = [text.format(schema[key]) for key, text in BOUNDS.items() if key in schema and abs(schema[key]) < LARGE]
        word = "path" if schema.get("format") == "path" else WORDS.get(schema.get("type", ""), "any value")
        yield " ".join([word, ", ".join(bounds)]).strip()


def default(field: FieldInfo) -> str:
    """What a setting is when it is left out, as TOML writes it; a dash where the meaning says it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "-"
    if isinstance(value, Settings):
        return "its defaults"
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


if __name__ == "__main__":
    sys.path.insert(0, str(PAGE.parent.parent))
    from docs import combinations, fits

    match sys.argv[1:]:
        case []:
            PAGE.write_text(page(), encoding="utf-8")
            combinations.PAGE.write_text(combinations.page(official()), encoding="utf-8")
        case ["fits", *families]:
            fits.PAGE.write_text(fits.page(families, fits.PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        case _:
            sys.exit("usage: python docs/generate.py [fits [FAMILY ...]]")

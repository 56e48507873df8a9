"""The JSON schema of config files, for editors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from ..discovery import load_class
from .datasets import CORE_TABLES, DatasetTable
from .load import SINGLE_TABLES

_REF = "#/$defs/{model}"


def schema(names: Iterable[str]) -> dict[str, Any]:
    """The JSON schema of a config with the core's tables and those of the named plugins, which are imported.

    A family's settings stand in `[model]`, any other plugin's in its own table. InputError if a plugin cannot be imported.
    """
    from ..family import FamilyPlugin  # brings torch

    classes = {name: load_class(name) for name in names}
    families = {name for name, plugin in classes.items() if issubclass(plugin, FamilyPlugin)}
    datasets: dict[str, type[DatasetTable]] = {**CORE_TABLES, **_kinds(classes)}
    plugins = {name: plugin.settings_type for name, plugin in classes.items()}
    kinds = {*SINGLE_TABLES.values(), *datasets.values(), *plugins.values()}
    references, definitions = models_json_schema([(kind, "validation") for kind in sorted(kinds, key=_identity)], ref_template=_REF)
    found = {kind: dict(reference) for (kind, _), reference in references.items()}
    defined: dict[str, Any] = definitions.get("$defs", {})
    properties: dict[str, Any] = {name: found[kind] for name, kind in SINGLE_TABLES.items()}
    properties["datasets"] = {"type": "array", "items": {"anyOf": [found[datasets[name]] for name in sorted(datasets)]}, "minItems": 1}
    models = [_with(defined, found[plugins[name]], {"family": {"const": name}}, ["family"]) for name in sorted(families)]
    any_model = {"type": "object", "required": ["family"], "properties": {"family": {"type": "string"}}}
    properties["model"] = {"oneOf": models} if models else any_model
    switch = {"enabled": {"type": "boolean", "default": True, "description": "Whether the plugin takes part."}}
    properties["plugins"] = {
        "type": "object",
        "properties": {name: _with(defined, found[kind], switch, []) for name, kind in sorted(plugins.items()) if name not in families},
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tunesmith config",
        "type": "object",
        "properties": properties,
        "required": ["run", "model", "datasets"],
        "additionalProperties": False,
        "$defs": defined,
    }


def _kinds(classes: Mapping[str, Any]) -> dict[str, type[DatasetTable]]:
    """The tables of the kinds of datasets that plugins bring."""
    return {name: plugin.kind.table_type for name, plugin in classes.items() if hasattr(plugin, "kind")}


def _with(defined: Mapping[str, Any], reference: Mapping[str, Any], extra: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    """A table's schema with keys that the core puts beside the plugin's own."""
    table = dict(defined[reference["$ref"].rpartition("/")[2]])
    table["properties"] = {**extra, **table.get("properties", {})}
    if required or "required" in table:
        table["required"] = [*required, *table.get("required", [])]
    return table


def _identity(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"

"""Reading a config: one TOML file and its overrides, checked whole before anything is loaded."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..discovery import installed
from ..hooks import blamed_on
from ..plugin import Plugin, Settings, Stage
from ..sources import SourcePlugin
from ..words import bare, nearest, shown
from .casting import read_cast
from .datasets import CORE_TABLES, DatasetTable
from .faults import not_a_table, validate
from .lines import Key, index
from .optimizers import optimizer_problems
from .overrides import Override, apply, label
from .problems import ConfigErrors, Findings, Problem, Source
from .prompts import read_prompts
from .tables import (
    CheckpointsTable,
    LossTable,
    NoiseTable,
    OptimizerTable,
    RunTable,
    ValidationTable,
    as_stem,
    device_named,
)
from .together import together

if TYPE_CHECKING:
    import torch

SINGLE_TABLES: dict[str, type[Settings]] = {
    "run": RunTable,
    "noise": NoiseTable,
    "loss": LossTable,
    "optimizer": OptimizerTable,
    "checkpoints": CheckpointsTable,
    "validation": ValidationTable,
}
"""The core's tables that stand once and belong to nobody else."""
TABLES = (*SINGLE_TABLES, "model", "datasets", "plugins")


@dataclass(frozen=True)
class Config:
    """A config that is right: what was asked, table by table, and where in the file each key stands.

    `text` is the file as it stands and `data` what came of it with the overrides. `plugins` are the active plugins'
    settings without the family's, which are `model`; `classes` and `order` (from the model outwards) have the family.
    Every dataset has its name.
    """

    path: Path
    text: str
    overrides: tuple[str, ...]
    data: Mapping[str, Any]
    run: RunTable
    family: str
    model: Settings
    noise: NoiseTable
    loss: LossTable
    optimizer: OptimizerTable
    datasets: tuple[DatasetTable, ...]
    checkpoints: CheckpointsTable
    validation: ValidationTable
    prompts: Mapping[str, str]
    plugins: Mapping[str, Settings]
    classes: Mapping[str, type[Plugin[Any]]]
    order: tuple[str, ...]
    source: Source = field(repr=False)

    @property
    def base(self) -> Path:
        """The folder that the config's paths are relative to."""
        return self.path.parent

    @property
    def run_name(self) -> str:
        """The name of the run directory."""
        stem = self.path.resolve().parent.name if self.path.stem == "config" else self.path.stem
        return self.run.name or as_stem(stem, "run")

    @property
    def device(self) -> torch.device:
        """Where the run is to compute, `auto` resolved; a device that `[run]` names need not be there."""
        return device_named(self.run.device)

    @property
    def is_for_cpu(self) -> bool:
        """Whether the run is meant for the CPU; `auto` is meant for a GPU, which the machine of a plan may lack."""
        return self.run.device != "auto" and self.device.type == "cpu"

    @property
    def trains_base(self) -> bool:
        """Whether the model itself is trained: no active plugin is an adapter."""
        return not any(plugin.stage is Stage.ADAPT for plugin in self.classes.values())

    def settings(self) -> dict[str, Any]:
        """Every setting with its value, defaults too, as JSON has them."""
        tables: dict[str, Settings] = {name: getattr(self, name) for name in (*SINGLE_TABLES, "model")}
        dumped = {name: table.model_dump(mode="json") for name, table in tables.items()}
        return {
            **dumped,
            "model": {"family": self.family, **dumped["model"]},
            "datasets": {table.name: table.model_dump(mode="json") for table in self.datasets},
            "plugins": {name: settings.model_dump(mode="json") for name, settings in self.plugins.items()},
        }

    def problem(self, key: Key, message: str) -> Problem:
        """A problem that a later stage has with the setting or table at `key`, to be raised in a `ConfigErrors`."""
        return self.source.problem(key, message)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config file with `KEY=VALUE` overrides; ConfigErrors with every problem there is.

    Active plugins are imported, the family among them, and nothing is loaded.
    """
    text = _read(path)
    data, lines = _parse(path, text)
    applied, problems = _override(data, overrides)
    findings = Findings(Source(path, lines, applied), problems)
    known = installed()
    _check_names(data, known, findings)
    single = {name: _single(name, kind, data, path.parent, findings) for name, kind in SINGLE_TABLES.items()}
    cast = read_cast(data, known, path.parent, findings)
    datasets = _datasets(data, path.parent, cast.classes, single["run"], findings)
    prompts = read_prompts(single["validation"], findings) if single["validation"] is not None else {}
    findings.stop_if_any()
    return Config(
        path=path,
        text=text,
        overrides=tuple(overrides),
        data=data,
        family=cast.family,
        model=cast.settings[cast.family],
        datasets=datasets,
        prompts=prompts,
        plugins={name: settings for name, settings in cast.settings.items() if name != cast.family},
        classes=cast.classes,
        order=cast.order,
        source=findings.source,
        **single,
    )


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigErrors([Problem(str(path), line, "", "is not UTF-8 text; save the file in that encoding")]) from None
    except FileNotFoundError:
        raise ConfigErrors([Problem(str(path), None, "", "there is no such file")]) from None
    except IsADirectoryError:
        raise ConfigErrors([Problem(str(path), None, "", "is a folder; name the config file in it")]) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigErrors([Problem(str(path), None, "", f"cannot be read: {reason}")]) from None


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[Key, int]]:
    try:
        return tomllib.loads(text), index(text)
    except RecursionError:
        raise ConfigErrors([Problem(str(path), None, "", "is nested too deeply")]) from None
    except ValueError as error:
        message, _, place = str(error).partition(" (at ")
        numbers = [int(number) for number in re.findall(r"\d+", place)]
        line = numbers[0] if numbers else text.rstrip().count("\n") + 1 if place else None
        column = f" at column {numbers[1]}" if numbers else " at the end of the file" if place else ""
        raise ConfigErrors([Problem(str(path), line, "", f"is not valid TOML{column}: {message}")]) from None


def _override(data: dict[str, Any], texts: Sequence[str]) -> tuple[list[Override], list[Problem]]:
    """Put every override into `data`; those that were taken, and what is wrong with the others."""
    taken: list[Override] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            taken.append(apply(text, data))
        except ValueError as error:
            problems.append(Problem(label(text), None, "", str(error)))
    return taken, problems


def _check_names(data: Mapping[str, Any], known: Mapping[str, Any], findings: Findings) -> None:
    """Note every key at the top of the file that is no table of the core."""
    for name, value in data.items():
        if name in TABLES:
            continue
        if not isinstance(value, dict | list):
            homes = [f"[{table}]" for table, kind in SINGLE_TABLES.items() if name in kind.model_fields]
            place = f"it belongs below {' or '.join(homes)}" if homes else "settings stand below a table, such as [run]"
            message = f"setting {shown(name)} is outside of any table; {place}"
            findings.problems.append(Problem(*findings.source.place((name,)), "", message))
        elif name in known:
            findings.add((name,), f"unknown table [{name}]; plugin tables are written [plugins.{name}]")
        else:
            near = nearest(name, [*TABLES, *known])
            written = f"plugins.{near}" if near in known else near
            every = f"a plugin's is written [plugins.{bare(name)}], the core's are {', '.join(TABLES)}"
            findings.add((name,), f"unknown table; {f'did you mean [{written}]?' if near else every}")


def _single(name: str, kind: type[Settings], data: Mapping[str, Any], base: Path, findings: Findings) -> Any:
    """A table that stands once, or None if it is wrong."""
    raw = data.get(name, {})
    if not isinstance(raw, dict):
        findings.add((name,), not_a_table(raw, f"[{name}]"))
        return None
    table, faults = validate(kind, raw, base)
    if name == "optimizer":
        faults += [((key,), message) for key, message in optimizer_problems(raw)]
    for key, message in faults:
        findings.add((name, *key), message)
    return table


def _datasets(
    data: Mapping[str, Any], base: Path, classes: Mapping[str, Any], run: RunTable | None, findings: Findings
) -> tuple[DatasetTable, ...]:
    """The datasets that are right, each with its name."""
    raw = data.get("datasets", [])
    if not isinstance(raw, list):
        single = "should stand in double brackets, [[datasets]], once for each dataset"
        findings.add(("datasets",), single if isinstance(raw, dict) else not_a_table(raw, "[[datasets]]"))
        return ()
    if not raw:
        findings.add(("datasets",), 'missing table; write [[datasets]] with path = "..." for each dataset')
    tables: dict[int, DatasetTable] = {}
    for number, entry in enumerate(raw):
        if not isinstance(entry, dict):
            findings.add(("datasets", number), not_a_table(entry, "[[datasets]]"))
            continue
        kind = _table_type(entry, classes)
        if kind is None:  # what is wrong with it has been told
            continue
        table, faults = validate(kind, entry, base)
        if table is not None and table.source is not None:
            table, more = _with_source(table, classes, base)
            faults += more
        for key, message in faults:
            findings.add(("datasets", number, *key), message)
        if table is not None:
            tables[number] = table.named()
    for number, key, message in together(tables, run):
        findings.add(("datasets", number, *key), message)
    return tuple(tables.values())


def _table_type(entry: Mapping[str, Any], classes: Mapping[str, Any]) -> type[DatasetTable] | None:
    """The table of the kind that an entry names; pictures if it names none, or nothing that could be a name."""
    name = entry.get("kind", "image")
    if not isinstance(name, str) or name in CORE_TABLES:
        return CORE_TABLES[name if isinstance(name, str) else "image"]
    kind = getattr(classes.get(name), "kind", None)
    return None if kind is None else kind.table_type


def _with_source(table: DatasetTable, classes: Mapping[str, Any], base: Path) -> tuple[DatasetTable | None, list[tuple[Key, str]]]:
    """The table with the settings of its source as its plugin reads them, and with its name."""
    source = dict(table.source or {})
    plugin = classes.get(source["plugin"])
    if plugin is None or not issubclass(plugin, SourcePlugin):  # what is wrong with it has been told
        return None, []
    settings, faults = validate(plugin.source_type, {key: value for key, value in source.items() if key != "plugin"}, base)
    found = [(("source", *key), message) for key, message in faults]
    if settings is None:
        return None, found
    with blamed_on(source["plugin"], "dataset_name"):
        name = plugin.dataset_name(settings)
    return table.model_copy(update={"source": {"plugin": source["plugin"], **settings.model_dump()}}).named(name), found

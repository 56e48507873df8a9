"""Who may import whom, and who may name whom."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.metadata import packages_distributions

import tunesmith
from tests.house import Package, core, feature_packages, imported, packages, shown

WORDS_OF_THE_CORE = {"video", "audio", "image"}
"""Names that a feature may have and the core may say too: kinds of data."""
ONE_LIBRARY = {"pydantic-core": "pydantic"}
"""Distributions that another one pins exactly and is one library with."""
NOT_IMPORTED: dict[tuple[str, str], str] = {
    ("models/wan_s2v", "scipy"): "diffusers refuses to make beta sigmas without it",
}
"""Declared dependencies that no source imports, each with the reason."""


def feature_names() -> set[str]:
    return {name for package in feature_packages() for name in package.entry_points} - WORDS_OF_THE_CORE


def mentions(text: str, names: set[str]) -> list[tuple[int, str]]:
    """Where a text says one of the names: as a word, or as a part of snake_case or CamelCase."""
    split = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = {part.lower() for word in re.findall(r"\w+", line) for part in (word, *split.split(word))}
        found += [(number, name) for name in sorted(names & words)]
    return found


def test_core_imports_no_plugin() -> None:
    found = [shown(path, line) for path in core().sources for line, module, _ in imported(path) if module.startswith("tunesmith_")]
    assert not found


def test_mentions_finds_words_and_parts_of_identifiers() -> None:
    assert mentions("a = 1\nlora_targets\nLoraModel 'lora' explora LoRA", {"lora"}) == [(2, "lora"), (3, "lora")]
    assert mentions("explora, floral", {"lora"}) == []


def test_core_names_no_feature() -> None:
    found = [f"{shown(path, line)} {name}" for path in core().sources for line, name in mentions(path.read_text(), feature_names())]
    assert not found


def test_plugins_import_only_public_names_of_core_and_no_other_plugin() -> None:
    wrong = []
    for package in feature_packages():
        for path in package.sources:
            for line, module, names in imported(path):
                ours = module.split(".")[0]
                if ours.startswith("tunesmith_") and ours != package.module:
                    wrong.append(f"{shown(path, line)} imports the plugin {ours}")
                if ours == "tunesmith" and (module != "tunesmith" or not names):
                    wrong.append(f"{shown(path, line)} imports {module}: write `from tunesmith import ...`")
                if module == "tunesmith":
                    wrong += [f"{shown(path, line)} takes {name}, which is not public" for name in names if name not in tunesmith.__all__]
    assert not wrong


@cache
def third_parties(package: Package) -> dict[str, str]:
    """Distributions that a package's sources import, each with the first place."""
    homes = packages_distributions()
    found: dict[str, str] = {}
    for path in package.sources:
        for line, module, _ in imported(path):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top != package.module:
                for distribution in homes.get(top, [top]):
                    name = distribution.replace("_", "-").lower()
                    found.setdefault(ONE_LIBRARY.get(name, name), shown(path, line))
    return found


def test_every_import_is_a_declared_dependency() -> None:
    wrong = [
        f"{place} imports {name}, which {package.where} does not declare"
        for package in packages()
        for name, place in third_parties(package).items()
        if name not in {*package.dependencies, *package.optional}
    ]
    assert not wrong


def test_every_declared_dependency_is_imported_or_has_a_reason() -> None:
    wrong = [
        f"{package.where} declares {name} and imports it nowhere"
        for package in packages()
        for name in package.dependencies
        if name not in third_parties(package) and (package.where, name) not in NOT_IMPORTED
    ]
    assert not wrong


def test_core_has_at_most_15_direct_dependencies() -> None:
    assert len(core().dependencies) <= 15

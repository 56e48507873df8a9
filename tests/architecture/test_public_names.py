"""The public interface is written three times, for people, for type checkers and for the import system: they agree."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest

import tunesmith
from tests.house import core, parsed


def names_for_type_checkers() -> dict[str, set[str]]:
    """Module to names, from the imports below `if TYPE_CHECKING`."""
    tree = parsed(core().folder / "src/tunesmith/__init__.py")
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    return {node.module: {alias.name for alias in node.names} for node in branch.body if isinstance(node, ast.ImportFrom) and node.module}


def test_the_import_system_and_type_checkers_see_the_same_names() -> None:
    assert names_for_type_checkers() == {module: set(names) for module, names in tunesmith._HOMES.items()}


def test_all_lists_every_public_name_once_in_order() -> None:
    assert tunesmith.__all__ == sorted(tunesmith._MODULE_OF, key=lambda name: (not name.isupper(), name))
    assert dir(tunesmith) == sorted(tunesmith.__all__)


@pytest.mark.parametrize("name", tunesmith.__all__)
def test_public_name_is_what_its_module_has(name: str) -> None:
    module = importlib.import_module(f"tunesmith.{tunesmith._MODULE_OF[name]}")
    assert getattr(tunesmith, name) is getattr(module, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pluggin'"):
        tunesmith.Pluggin  # noqa: B018


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, tunesmith; sys.exit(', '.join({'torch', 'pydantic', 'pluggy', 'numpy'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""There are seven hooks, and docs/hooks.md has each with its exact signature."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from tests.house import ROOT, core, parsed
from tunesmith.hooks import PROVIDED, HookCaller
from tunesmith.hookspecs import Hooks

HOOKS = ("load_model", "encode_batch", "compute_loss", "on_step", "validate", "save_checkpoint", "log")


def signatures(file: str = "hookspecs.py", name: str = "Hooks") -> dict[str, str]:
    """The signatures of a class's public methods, by default of every hook, as its file writes them."""
    tree = parsed(core().folder / "src/tunesmith" / file)
    hooks = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        node.name: f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
        for node in hooks.body
        if isinstance(node, ast.FunctionDef) and node.returns and not node.name.startswith("_")
    }


def documented() -> dict[str, str]:
    """The section of docs/hooks.md about each hook."""
    sections = re.split(r"(?m)^## ", (ROOT / "docs/hooks.md").read_text())[1:]
    return {name: text for name, text in (section.split("\n", 1) for section in sections) if name in HOOKS}


def test_there_are_seven_hooks() -> None:
    assert tuple(signatures()) == HOOKS
    assert tuple(name for name in vars(Hooks) if not name.startswith("_")) == HOOKS


def test_every_hook_is_documented_in_order() -> None:
    assert tuple(documented()) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_documentation_has_the_exact_signature_and_says_when(hook: str) -> None:
    section = documented()[hook]
    assert f"```python\n{signatures()[hook]}\n```" in section
    for heading in ("**When:**", "**Do:**", "**Do not:**"):
        assert heading in section


@pytest.mark.parametrize("hook", HOOKS)
def test_documentation_says_which_kind_of_hook_it_is(hook: str) -> None:
    kind = "one provider" if hook in PROVIDED else "observers" if hook == "log" else "everyone"
    assert f"*{kind}*" in documented()[hook]


@pytest.mark.parametrize("hook", HOOKS)
def test_the_typed_facade_calls_hooks_with_their_own_signature(hook: str) -> None:
    specified, offered = inspect.signature(getattr(Hooks, hook)), inspect.signature(getattr(HookCaller, hook))
    assert offered == specified


@pytest.mark.parametrize("method", signatures("plugin.py", "Plugin"))
def test_what_plugins_say_beside_their_hooks_is_documented_with_the_exact_signature(method: str) -> None:
    page = (ROOT / "docs/hooks.md").read_text()
    section = page[page.index("## What a plugin says beside its hooks") :]
    documented = [line for block in re.findall(r"(?ms)^```python\n(.*?)^```$", section) for line in block.splitlines()]
    assert signatures("plugin.py", "Plugin")[method] in documented

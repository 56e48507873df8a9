"""Which layers are adapted: names, patterns and classes of modules, matched as LyCORIS matches them."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from tunesmith import InputError

if TYPE_CHECKING:
    from .config import LayerOptions, ModuleConfig, NetworkConfig

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_PATTERN = re.compile(r"[\\*+?\[\](){}|^$]")
_MOST_NAMED = 8


class NoMatch(InputError):
    """A target, as it was written, that adapts no layer."""

    def __init__(self, target: str, sentence: str) -> None:
        super().__init__(sentence)
        self.target = target


def is_pattern(target: str) -> bool:
    """Whether a target is a regular expression; a plain name has none of their characters (a dot is part of names)."""
    return _PATTERN.search(target) is not None


def expression(target: str) -> str:
    """The regular expression for the beginning of a path that only whole paths match: of a pattern, or of a name at its end."""
    return f"(?:{target})$" if is_pattern(target) else rf"(?:.*\.)?{re.escape(target)}$"


def select_layers(network: nn.Module, config: NetworkConfig, written: Mapping[str, str] = {}) -> dict[str, LayerOptions]:
    """The paths of the layers that are adapted, in the network's order, each with what it gets.

    `written` says how the user wrote a name that the config has as an expression. Raises NoMatch if a class or a name
    adapts nothing.
    """
    selection = _Selection(network, config)
    selection.run()
    preset = config.apply_preset
    names = (*preset.target_name, *preset.name_algo_map)
    classes = {*preset.module_algo_map, *(preset.target_module if "target_module" in preset.model_fields_set else ())}
    for target in [*names, *sorted(classes)]:
        if target not in selection.effective:
            raise NoMatch(written.get(target, target), _no_match(network, target, written.get(target, target), names))
    if not selection.layers:
        raise NoMatch("", f"no layer of {type(network).__name__} is adapted: every one is excluded, or nothing is named")
    return selection.layers


class _Selection:
    """One walk through a network. As in LyCORIS, of a layer that several targets reach the first one decides, parents first."""

    def __init__(self, network: nn.Module, config: NetworkConfig) -> None:
        self.network, self.config, self.preset = network, config, config.apply_preset
        self.names = (*self.preset.target_name, *self.preset.name_algo_map)
        self.classes = {*self.preset.target_module, *self.preset.module_algo_map}
        self.layers: dict[str, LayerOptions] = {}
        self.effective: set[str] = set()

    def run(self) -> None:
        """Fill `layers`, and `effective` with the targets that reached one."""
        for path, module in self.network.named_modules():
            kind = _class(module)
            matched = [name for name in self.names if name == path or self.matches(name, path)]
            if self.excluded(path):
                continue
            if kind in self.classes and not matched:
                self.walk(path, module, self.preset.module_algo_map.get(kind), kind)
            elif matched and self.add(path, module, self.by_name(path, kind)):
                self.effective.update(matched)

    def walk(self, path: str, root: nn.Module, module_config: ModuleConfig | None, target: str) -> None:
        """Add all layers within a module; those of a class with arguments of its own get these."""
        for name, module in root.named_modules():
            inner, kind = ".".join(filter(None, (path, name))), _class(module)
            if self.excluded(inner):
                continue
            if kind in self.preset.module_algo_map and module is not root:
                self.walk(inner, module, self.preset.module_algo_map[kind], kind)
            elif self.add(inner, module, module_config):
                self.effective.add(target)

    def add(self, path: str, module: nn.Module, module_config: ModuleConfig | None) -> bool:
        """Add a layer unless it is none, or has been added; whether it was."""
        if path in self.layers or not isinstance(module, Layer):
            return False
        wide = not isinstance(module, nn.Linear) and module.kernel_size[0] != 1
        options = self.config.options(module_config, wide=wide)
        if options is None:
            return False
        self.layers[path] = options
        return True

    def by_name(self, path: str, kind: str) -> ModuleConfig | None:
        """The arguments for a layer that is named: by its own name, by the first name that matches, or by its class."""
        named = self.preset.name_algo_map
        if path in named:
            return named[path]
        return next((one for name, one in named.items() if self.matches(name, path)), self.preset.module_algo_map.get(kind))

    def excluded(self, path: str) -> bool:
        return bool(path) and any(path == name or self.matches(name, path) for name in self.preset.exclude_name)

    def matches(self, name: str, path: str) -> bool:
        return fnmatch.fnmatch(path, name) if self.preset.use_fnmatch else re.match(name, path) is not None


def _class(module: nn.Module) -> str:
    """What a preset calls a module; a layer is called as it was before it was quantised."""
    plain = next((kind for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(module, kind)), type(module))
    return plain.__name__


def _no_match(network: nn.Module, target: str, written: str, names: Iterable[str]) -> str:
    """What to say of a target that adapts nothing: the nearest names, or all of them."""
    kind = type(network).__name__
    if target not in names:
        return _no_class(network, target)
    paths = [path for path, module in network.named_modules() if isinstance(module, Layer)]
    if any(re.match(target, path) for path in paths):
        return f"{written!r} reaches only layers of {kind} that other targets have reached before: take it out, or those"
    known = list(dict.fromkeys(_ending(path, length) for length in (1, 2) for path in paths))
    near = difflib.get_close_matches(written, known, _MOST_NAMED)
    named = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(dict.fromkeys(_ending(path, 1) for path in paths))}"
    return f"lycoris target {written!r} matches no Linear or convolution layer of {kind}; {named}"


def _no_class(network: nn.Module, target: str) -> str:
    """What to say of a class of modules whose layers are none, or are adapted by another target."""
    within = [type(module) for module in network.modules() if any(isinstance(one, Layer) for one in module.modules())]
    if target in {one.__name__ for one in within}:
        return f"all layers of {type(network).__name__} within {target} are adapted by other targets already: take it out, or those"
    own = sorted({one.__name__ for one in within if not one.__module__.startswith("torch.")})
    return f"{type(network).__name__} has no modules of the class {target} with layers to adapt; there are {', '.join(own)}"


def _ending(path: str, length: int) -> str:
    """The last parts of a path; a number does not count as one."""
    parts = path.split(".")
    return ".".join(parts[-length - parts[-1].isdigit() :])

"""Which layers an adapter attaches to: names and patterns, checked against the network that is there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from torch import nn

from tunesmith import InputError

_PATTERN = re.compile(r"[\\*+?\[\](){}|^$]")
_MOST_NAMED = 8


def is_pattern(target: str) -> bool:
    """Whether a target is a regular expression; a plain name has none of their characters (a dot is part of names)."""
    return _PATTERN.search(target) is not None


def expression(target: str) -> str:
    """The regular expression that the whole path of a layer must match: a pattern itself, or a name at its end."""
    return target if is_pattern(target) else rf"(?:.*\.)?{re.escape(target)}"


def target_modules(network: nn.Module, targets: Sequence[str], rank: int) -> list[str] | str:
    """The targets as peft takes them: a list of name endings, or one regular expression where a pattern is among them.

    Raises InputError if one of them matches no layer that can be adapted, with the nearest names.
    """
    layers = {path: layer for path, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    for target in targets:
        matched = [path for path in layers if re.fullmatch(expression(target), path)]
        if not matched:
            raise InputError(_no_match(network, target, list(layers)))
        for path in matched:
            _check_groups(path, layers[path], rank)
    if any(is_pattern(target) for target in targets):
        return "|".join(f"(?:{expression(target)})" for target in targets)
    return list(targets)


def _no_match(network: nn.Module, target: str, paths: Sequence[str]) -> str:
    """What to say of a target that matches nothing: the nearest endings of layer names, or all of them."""
    endings = list(dict.fromkeys(_ending(path, 1) for path in paths))
    longer = list(dict.fromkeys(_ending(path, 2) for path in paths))
    near = difflib.get_close_matches(target, [*endings, *longer], _MOST_NAMED)
    named = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(endings)}"
    return f"lora target {target!r} matches no Linear or convolution layer of {type(network).__name__}; {named}"


def _ending(path: str, length: int) -> str:
    """The last parts of a path; a number does not count as one."""
    parts = path.split(".")
    return ".".join(parts[-length - parts[-1].isdigit() :])


def _check_groups(path: str, layer: nn.Module, rank: int) -> None:
    """Refuse a grouped convolution that cannot be split into as many ranks."""
    groups = 1 if isinstance(layer, nn.Linear) else int(layer.groups)  # type: ignore[arg-type]
    if rank % groups:
        raise InputError(
            f"lora cannot adapt {path}, a convolution of {groups} groups, at rank {rank}: "
            f"leave it out of `targets`, or take a rank that is a multiple of {groups}"
        )

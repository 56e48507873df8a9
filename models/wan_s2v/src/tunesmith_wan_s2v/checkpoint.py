"""Loading the network's weights: two namings of the same tensors, and an error where tensors do not match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tunesmith import InputError

_ENCODER = "condition_embedder.causal_audio_encoder"
RENAMED: Mapping[str, str] = {
    f"{_ENCODER}.weighted_avg.weights": f"{_ENCODER}.weights",
    **{
        f"{_ENCODER}.encoder.{convolution}.conv.conv.{kind}": f"{_ENCODER}.encoder.{convolution}.conv.{kind}"
        for convolution in ("conv2", "conv3")
        for kind in ("weight", "bias")
    },
}
"""Names that other implementations give to five tensors, and their names in the published checkpoint, which are ours."""
_SHOWN = 8


def hub_names(state: MutableMapping[str, Any], prefix: str = "") -> None:
    """Give the tensors of a state dict their published names, in place; all names begin with the prefix."""
    for other, name in RENAMED.items():
        if prefix + other in state:
            state[prefix + name] = state.pop(prefix + other)


def accept_other_names(network: Any, state: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
    """The hook that lets a network's `load_state_dict` take both namings."""
    hub_names(state, prefix)


def renaming_files(files: Sequence[str | Path]) -> list[str | Path | dict[str, Tensor]]:
    """The files of a checkpoint, each that uses other names replaced by its tensors under the published ones.

    Such a file is mapped and not read, so no more memory is used than for the others.
    """
    found: list[str | Path | dict[str, Tensor]] = []
    for file in files:
        if _uses_other_names(file):
            tensors = load_file(file)
            hub_names(tensors)
            found.append(tensors)
        else:
            found.append(file)
    return found


def check_names(expected: Iterable[str], found: Iterable[str], source: str) -> None:
    """InputError, naming the tensors, unless a checkpoint has exactly those that the network has."""
    expected, found = set(expected), set(found)
    problems = []
    if missing := sorted(expected - found):
        problems.append(f"lacks {_listed(missing)}")
    if unknown := sorted(found - expected):
        problems.append(f"has {_listed(unknown)}, which its config.json does not provide for")
    if problems:
        raise InputError(
            f"{source} is no checkpoint of WanS2VTransformer3DModel as its config.json describes it: it {' and '.join(problems)}; "
            f"check that config.json belongs to these weights and that they are in the diffusers layout"
        )


def _uses_other_names(file: str | Path) -> bool:
    if Path(file).suffix != ".safetensors":
        raise InputError(f"{file} is no safetensors file; a checkpoint in several files must be in that format")
    with safe_open(file, framework="pt") as opened:
        return not RENAMED.keys().isdisjoint(opened.keys())


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"

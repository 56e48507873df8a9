"""Loading the network's weights: two namings of the same tensors, and an error where tensors do not match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from tunesmith import InputError

Shape: TypeAlias = tuple[int, ...]

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


def shapes_of(parts: Iterable[str | Path | Mapping[str, Tensor]]) -> dict[str, Shape]:
    """The shapes of the tensors of files or state dicts, by name, without reading the tensors."""
    shapes: dict[str, Shape] = {}
    for part in parts:
        if isinstance(part, Mapping):
            shapes |= {name: tuple(tensor.shape) for name, tensor in part.items()}
        else:
            with _opened(part) as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Shape], source: str) -> None:
    """InputError, naming the tensors, unless a checkpoint has exactly those that the network has, by name and shape."""
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"lacks {_listed(missing)}")
    if unknown := sorted(found.keys() - expected.keys()):
        problems.append(f"has {_listed(unknown)}, which its config.json does not provide for")
    wanted = {name: tuple(expected[name].shape) for name in sorted(expected.keys() & found.keys())}
    if others := [f"{name}: {list(found[name])} instead of {list(shape)}" for name, shape in wanted.items() if found[name] != shape]:
        problems.append(f"has {_listed(others)} of another shape")
    if problems:
        raise InputError(
            f"{source} is no checkpoint of WanS2VTransformer3DModel as its config.json describes it: it {' and '.join(problems)}; "
            f"check that config.json belongs to these weights and that they are in the diffusers layout"
        )


def _uses_other_names(file: str | Path) -> bool:
    if Path(file).suffix != ".safetensors":
        raise InputError(f"{file} is no safetensors file; a checkpoint in several files must be in that format")
    with _opened(file) as tensors:
        return not RENAMED.keys().isdisjoint(tensors.keys())


@contextmanager
def _opened(file: str | Path) -> Iterator[Any]:
    """A safetensors file; InputError if it is damaged."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise InputError(f"{file} cannot be read: {error}; it is damaged or not all there: copy or download it anew") from None


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"

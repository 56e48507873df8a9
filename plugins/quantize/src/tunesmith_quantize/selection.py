"""Which layers are quantised, and what that saves: the same answers for a network on the meta device and for a loaded one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from .formats import Format
from .layers import Layer, can_be_quantized, matrix_shape, quantized

_PATTERN = re.compile(r"[\\*+?\[\](){}|^$]")
_IN_NORM = re.compile(r"(.*\.)?\w*norm\w*\..*")
"""Layers within a norm: they make its scale and shift, which steer everything behind it."""
_MOST_NAMED = 8


@dataclass(frozen=True)
class Tally:
    """What a network takes: layers that are quantised, parameters of these and of all, and bytes of all before and after."""

    format: str
    num_layers: int
    packed: int
    parameters: int
    bytes_before: int
    bytes_after: int
    convolutions: int
    """Parameters of convolutions that stay as they are."""

    def __str__(self) -> str:
        left = self.parameters - self.packed
        kept = f"{left / 1e6:,.2f} M stay as they are"
        if self.convolutions:
            kept += f", {self.convolutions / 1e6:,.2f} M of them in convolutions"
        return (
            f"{self.format} for {self.num_layers} layers with {self.packed / 1e6:,.2f} M of {self.parameters / 1e6:,.2f} M parameters: "
            f"{size_text(self.bytes_after)} instead of {size_text(self.bytes_before)}; {kept}"
        )


def layers_of_trunk(network: nn.Module, trunk: Iterable[str], modules: Sequence[str] | None, keep: Sequence[str]) -> dict[str, Layer]:
    """The layers of a denoiser to quantise, by path.

    They are those that match `modules`, or those within the trunk's modules, of these names, that are in no norm; without
    those that match `keep`.
    """
    every = _candidates(network)
    if modules is None:
        inside = tuple(f"{name}." for name in trunk)
        chosen = [path for path in every if path.startswith(inside) and not _IN_NORM.fullmatch(path)]
    else:
        chosen = [path for path in every if matches(path, modules)]
    return {path: every[path] for path in chosen if not matches(path, keep)}


def unmatched(network: nn.Module, patterns: Iterable[str]) -> Iterator[str]:
    """A sentence for each pattern that matches nothing that could be quantised: the nearest endings of paths, or all of them."""
    paths = list(_candidates(network))
    endings = list(dict.fromkeys(re.sub(r"^(?:.*\.)?(\w*[a-z_]\w*(?:\.\d+)*)$", r"\1", path) for path in paths))
    for pattern in patterns:
        if not any(matches(path, (pattern,)) for path in paths):
            near = difflib.get_close_matches(pattern, endings, _MOST_NAMED)
            named = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(endings)}"
            yield f"{pattern!r} matches no linear layer or convolution of one pixel of {type(network).__name__}; {named}"


def layers_of_encoder(network: nn.Module) -> dict[str, Layer]:
    """The linear layers of a text encoder, but for what it wants in fp32 and for its output embeddings."""
    delicate = set(getattr(network, "_keep_in_fp32_modules", None) or ())  # transformers has no other name for it
    head = getattr(network, "get_output_embeddings", lambda: None)()
    return {path: layer for path, layer in _candidates(network).items() if layer is not head and not delicate & set(path.split("."))}


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a layer is meant by one of the patterns: a regular expression for its whole path, or a name at its end."""
    return any(re.fullmatch(one if _PATTERN.search(one) else rf"(?:.*\.)?{re.escape(one)}", path) for one in patterns)


def tally(network: nn.Module, layers: dict[str, Layer], format: Format, dtype: torch.dtype | None = None) -> Tally:
    """What the network takes before and after these layers are packed; nothing is computed.

    With `dtype` all is counted in that, as far as it is there without weights; otherwise each parameter in its own.
    """
    before = sum(parameter.numel() * (dtype or parameter.dtype).itemsize for parameter in network.parameters())
    after = before
    for layer in layers.values():
        kept = dtype or layer.weight.dtype
        after += format.num_bytes(*matrix_shape(layer), kept) - layer.weight.numel() * kept.itemsize
    return Tally(
        format.name,
        len(layers),
        sum(layer.weight.numel() for layer in layers.values()),
        sum(parameter.numel() for parameter in network.parameters()),
        before,
        after,
        sum(parameter.numel() for parameter in _left_in_convolutions(network, layers)),
    )


def quantize_layers(network: nn.Module, layers: dict[str, Layer], format: Format, device: torch.device) -> None:
    """Put packed layers in the place of these, one after the other."""
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, quantized(layer, format, device))


def num_bytes(network: nn.Module) -> int:
    """Bytes of all parameters and buffers of a loaded network."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))


def size_text(count: int) -> str:
    """Bytes in KiB, MiB or GiB."""
    power = 3 if count >= 2**30 else 2 if count >= 2**20 else 1
    return f"{count / 1024**power:,.2f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def _left_in_convolutions(network: nn.Module, layers: dict[str, Layer]) -> Iterator[nn.Parameter]:
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and path not in layers:
            yield from module.parameters(recurse=False)


def _candidates(network: nn.Module) -> dict[str, Layer]:
    return {path: cast(Layer, module) for path, module in network.named_modules() if can_be_quantized(module)}

"""Networks that are not trained, such as text encoders and autoencoders: diffusers' own group offloading is right for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from tunesmith import InputError, Run

from .groups import weights_of


def offload_encoder(name: str, network: nn.Module, level: str, blocks_per_group: int, device: torch.device, folder: Path | None) -> None:
    """Let the weights of a frozen network lie on the machine, or in files below `folder`, but while its blocks or layers compute.

    There are no streams: with them diffusers does not wait for weights that belong to no block, and results are wrong
    (its issue 11981). Raises InputError where blocks are asked for and the network has none.
    """
    parts = set(holders(network))
    if level == "block" and not parts and not any(map(is_list, network.children())):
        raise InputError(f'{name} has no list of blocks that could come and go; write level = "leaf", or take it out of encoders')
    if hasattr(network, "decode"):  # an autoencoder's methods call its children, and never the network itself
        parts |= {child for child, module in network.named_children() if not is_list(module)}
    apply_group_offloading(
        network,
        onload_device=device,
        offload_type=f"{level}_level",
        num_blocks_per_group=blocks_per_group,
        offload_to_disk_path=None if folder is None else str(folder),
        block_modules=sorted(parts),
    )


def count_visits(network: nn.Module, run: Run) -> None:
    """In a rehearsal, where the machine is the device: let weights that come and go be counted only while they are there."""
    for group in {id(group): group for group in _groups(network)}.values():
        tensors = [*weights_of(group.modules), *group.parameters, *group.buffers]
        group.onload_ = partial(_settle, tensors, run.device_copy)
        group.offload_ = partial(_settle, tensors, run.host_copy)
        group.offload_()


def _groups(network: nn.Module) -> Iterator[Any]:
    """What diffusers lets come and go, some of it several times."""
    for module in network.modules():
        registry = getattr(module, "_diffusers_hook", None)
        hook = None if registry is None else registry.get_hook("group_offloading")
        if hook is not None:
            yield hook.group


def _settle(tensors: Sequence[Tensor], place: Callable[[Tensor], Tensor]) -> None:
    for tensor in tensors:
        tensor.data = place(tensor.data)


def holders(module: nn.Module) -> Iterator[str]:
    """The names of submodules, each within the one that it is in, down to those that hold a list of blocks."""
    for name, child in module.named_children():
        if not is_list(child) and any(map(is_list, child.modules())):
            yield name
            yield from holders(child)


def is_list(module: nn.Module) -> bool:
    """Whether diffusers takes what is in a module for blocks; how a weight is computed of others is none, though it is listed, too."""
    return isinstance(module, nn.ModuleList | nn.Sequential) and not isinstance(module, ParametrizationList)

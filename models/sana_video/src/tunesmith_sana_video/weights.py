"""The weights of published checkpoints, one table of which may be stored in another shape than the model has it in."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tunesmith import Component, InputError, load_frozen

TABLE = "scale_shift_table"


def load_transformer(kind: type[nn.Module], component: Component, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> Any:
    """The transformer, frozen; its last modulation table may be stored as [1, 2, D] instead of [2, D].

    `shapes` are those of the model's tensors. diffusers refuses the table, or draws it anew where it is told to ignore
    shapes; so it is set here, and InputError is raised if any other tensor of the files has another shape.
    """
    table = _stored_table(component, shapes)
    if table is None or tuple(table.shape) == shapes[TABLE]:
        return load_frozen(kind, component, dtype)
    transformer = load_frozen(kind, component, dtype, low_cpu_mem_usage=False, ignore_mismatched_sizes=True)
    getattr(transformer, TABLE).copy_(table.reshape(shapes[TABLE]))
    return transformer


def _stored_table(component: Component, shapes: dict[str, tuple[int, ...]]) -> Tensor | None:
    found: Tensor | None = None
    for file in component.files[1:]:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - the file is no mapping
                shape = tuple(tensors.get_slice(name).get_shape())
                if name == TABLE and shape in (shapes[TABLE], (1, *shapes[TABLE])):
                    found = tensors.get_tensor(name)
                elif shape != shapes.get(name, shape):
                    raise InputError(f"{name} in {file} has the shape {shape}; the transformer's configuration asks for {shapes[name]}")
    return found

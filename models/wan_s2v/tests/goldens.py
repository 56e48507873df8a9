"""Golden data of the reference implementation, and the network that it belongs to."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith_wan_s2v import WanS2VTransformer3DModel

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("a", "b", "c")


@cache
def facts(name: str) -> dict[str, Any]:
    """What the JSON of `wan_s2v_<name>` says."""
    found: dict[str, Any] = json.loads((GOLDEN / f"wan_s2v_{name}.json").read_text())
    return found


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"wan_s2v_{name}.safetensors")


def group(name: str, prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, named without it."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors(name).items() if key.startswith(f"{prefix}.")}


CASES = [(name, case) for name in NAMES for case in facts(name)["cases"]]
every_case = pytest.mark.parametrize(("name", "case"), CASES)


def network(name: str, **changes: Any) -> WanS2VTransformer3DModel:
    """A fresh network with the golden weights."""
    model: WanS2VTransformer3DModel = WanS2VTransformer3DModel(**{**facts(name)["config"], **changes})
    model.load_state_dict(group(name, "sd"))
    model.eval()
    return model


def inputs(name: str, case: str) -> dict[str, Any]:
    """The arguments of `forward`."""
    settings = facts(name)["cases"][case]
    scalars = {key: settings[key] for key in ("motion_frames", "drop_motion_frames", "add_last_motion")}
    return {**group(name, f"{case}.in"), **scalars}


def prediction(model: WanS2VTransformer3DModel, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        (sample,) = model(**arguments, return_dict=False)
    assert isinstance(sample, Tensor)
    return sample


def difference(first: Tensor, second: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape."""
    assert first.shape == second.shape
    return float((first.double() - second.double()).abs().max())

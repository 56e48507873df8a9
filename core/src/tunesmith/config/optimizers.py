"""`[optimizer]`: which class `type` names, and whether it takes the arguments that are given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..errors import InputError
from ..words import nearest, shown, unknown
from .tables import OptimizerTable

_OURS = frozenset({"self", "params", "lr"})
MUON = "muon"
NAMED = {
    MUON: "tunesmith.muon.MuonAdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "pagedadamw8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "lion8bit": "bitsandbytes.optim.Lion8bit",
    "pagedlion8bit": "bitsandbytes.optim.PagedLion8bit",
    "ademamix8bit": "bitsandbytes.optim.AdEMAMix8bit",
    "pagedademamix8bit": "bitsandbytes.optim.PagedAdEMAMix8bit",
    "adamw4bit": "torchao.optim.AdamW4bit",
    "adamwfp8": "torchao.optim.AdamWFp8",
    "adamw_stochastic": "torchao.optim._AdamW",
    "adamw_kahan": "optimi.AdamW",
    "lion_kahan": "optimi.Lion",
    "stableadamw": "optimi.StableAdamW",
    "adan": "optimi.Adan",
    "ranger": "optimi.Ranger",
    "prodigy": "prodigyopt.Prodigy",
    "adamw_schedulefree": "schedulefree.AdamWScheduleFree",
    "radam_schedulefree": "schedulefree.RAdamScheduleFree",
    "sgd_schedulefree": "schedulefree.SGDScheduleFree",
}
"""Optimizers by short names where torch.optim has none, or one for matrices alone."""
IMPLIED = {"adamw_stochastic": {"bf16_stochastic_round": True}}
"""Arguments that a short name promises, where the config does not say otherwise."""
FOR_BF16 = ("adamw_kahan", "lion_kahan", "adamw_stochastic")
"""Those that are there for what bf16 rounds away of trained weights, and are like any other for weights in fp32."""
_DISTRIBUTIONS = {"optimi": "torch-optimi"}
"""What is installed for a library that is imported under another name."""
_WRITTEN = {"gradient_release": "fused_backward_pass"}
"""Arguments that are settings of the core under another name, for which it does what the optimizer alone cannot."""
_JOINT = {"prodigyopt": "finds one learning rate from the gradients of all weights"}
"""Libraries whose optimizers cannot update one weight without the gradients of the others, and why."""
_OWN_RATE = {"prodigyopt": 0.1}
"""Libraries whose optimizers find a learning rate that `lr` only multiplies, and from where on that can be meant."""
_UNFIT = {
    "lbfgs": "evaluates the loss several times per step, which a loop over micro-batches does not",
    "sparseadam": "wants sparse gradients, which diffusion models do not have",
}


def optimizer_class(kind: str) -> type[Any]:
    """The class that `type` names: one of torch.optim in lower case, one of `NAMED`, or an import path; InputError if there is none."""
    if "." in kind or kind in NAMED:
        return _fit(kind, _imported(NAMED.get(kind, kind)))
    known = _torch_optimizers()
    if kind not in known:
        near = nearest(kind, [*known, *NAMED])
        hint = f"did you mean {near!r}?" if near else f"torch.optim has {', '.join(known)}, and there are {', '.join(NAMED)}"
        raise InputError(f"type = {shown(kind)}: {hint}; others are named by an import path such as 'bitsandbytes.optim.PagedLion8bit'")
    return _fit(kind, known[kind])


def optimizer_problems(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with the type and the arguments in a raw `[optimizer]` table, as (key, sentence)."""
    kind = table.get("type", OptimizerTable.model_fields["type"].default)
    if not isinstance(kind, str):
        return []  # the table's own validation tells
    try:
        found = optimizer_class(kind)
    except InputError as error:
        return [("type", str(error))]
    arguments = {name: value for name, value in table.items() if name not in OptimizerTable.model_fields}
    library = found.__module__.partition(".")[0]
    joint = _JOINT.get(library)
    if joint is not None and table.get("fused_backward_pass") is True:
        return [("fused_backward_pass", f"{kind} {joint}, which are never there together then; take this out, or another type")]
    lr = table.get("lr", OptimizerTable.model_fields["lr"].default)
    if isinstance(lr, int | float) and 0 < lr < _OWN_RATE.get(library, 0):
        told = f"{kind} finds its own rate and multiplies it by lr: with lr = {shown(lr)} next to nothing would be learnt; write lr = 1.0"
        return [("lr" if "lr" in table else "type", told)]
    return _signature_problems(kind, found, arguments) or _refusal(kind, found, arguments)


def _fit(kind: str, found: type[Any]) -> type[Any]:
    reason = _UNFIT.get(found.__name__.lower()) if found.__module__.startswith("torch.optim") else None
    if reason is not None:
        raise InputError(f"type = {kind!r}: {found.__name__} {reason}; take another, such as 'adamw'")
    return found


def _signature_problems(kind: str, found: type[Any], arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Arguments that are unknown, not the user's to give, of another kind than their defaults, or missing."""
    parameters = inspect.signature(found).parameters.values()
    named = [one for one in parameters if one.name not in _OURS and one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    known = {one.name for one in named}
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    problems: list[tuple[str, str]] = []
    for name in arguments:
        if name in _OURS:
            problems.append((name, f"{name!r} is not for a config to set: what is trained follows from the model and the plugins"))
        elif name in _WRITTEN:
            problems.append((name, f"{name!r} is written {_WRITTEN[name]} = true here"))
        elif name not in known and not takes_any:
            problems.append((name, unknown(f"setting of {kind}", name, {*known, *OptimizerTable.model_fields})))
    is_known = found.__module__.startswith("torch.optim") or kind in NAMED
    wanted = ((one.name, _wanted(one, arguments[one.name], is_known)) for one in named if one.name in arguments)
    problems += [(name, f"{name} = {shown(arguments[name])}: should be {sentence}") for name, sentence in wanted if sentence]
    missing = [one.name for one in named if one.default is one.empty and one.name not in arguments]
    return problems + [("type", f"{kind} needs {name!r}, which has no default: add {name} = ...") for name in missing]


def _wanted(parameter: inspect.Parameter, value: Any, is_known: bool) -> str | None:
    """What a value should be to stand where the default of a parameter does, which some libraries find out at the first step; or None.

    Only of a class that `is_known` an array must be as long as the default.
    """
    default, annotation = parameter.default, parameter.annotation
    if isinstance(default, tuple | list) and default:
        fits = isinstance(value, list) and (len(value) == len(default) or not is_known) and all(map(_is_number, value))
        return None if fits else f"an array of {len(default)} numbers"
    if isinstance(default, bool):
        return None if isinstance(value, bool) or annotation not in (bool, "bool", parameter.empty) else "true or false"
    if isinstance(default, int) and annotation in (int, "int"):
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if isinstance(default, int | float):
        return None if _is_number(value) or annotation not in (int, "int", float, "float", parameter.empty) else "a number"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refusal(kind: str, found: type[Any], arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an optimizer of torch or one with a short name says of these values when it is given weights."""
    if not found.__module__.startswith("torch.optim") and kind not in NAMED:
        return []  # others may need a GPU to be made
    import torch

    shapes = ((2, 2),) if found.__module__.startswith("torch.optim") else ((2, 2), (2,))
    try:
        found([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes], lr=1e-3, **arguments)
    except Exception as error:  # each library checks values in its own ways; all of them are told
        blamed = [name for name in arguments if name.rstrip("s") in str(error)]
        return [(blamed[0] if blamed else "type", f"{kind} refuses its arguments: {' '.join(str(error).split())}")]
    return []


def _torch_optimizers() -> dict[str, type[Any]]:
    from torch import optim

    classes = {name.lower(): one for name, one in vars(optim).items() if isinstance(one, type) and issubclass(one, optim.Optimizer)}
    return {name: classes[name] for name in sorted(classes) if name != "optimizer"}


def _imported(path: str) -> type[Any]:
    from torch.optim import Optimizer

    module_name, _, name = path.rpartition(".")
    try:
        module = import_module(module_name)
        there = hasattr(module, name)  # some modules import what they name only now
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises; the user is told
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        library = module_name.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == library
        hint = f"; pip install {_DISTRIBUTIONS.get(library, library)}" if missing and path in NAMED.values() else ""
        raise InputError(f"type = {shown(path)}: cannot import {shown(module_name)}: {cause}{hint}") from error
    if not there:
        raise InputError(f"type = {shown(path)}: {unknown(f'class of {module_name}', name, _optimizers_in(module))}")
    found = getattr(module, name)
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise InputError(f"type = {shown(path)}: is no subclass of torch.optim.Optimizer")
    return found


def _optimizers_in(module: Any) -> list[str]:
    from torch.optim import Optimizer

    return [name for name, one in vars(module).items() if isinstance(one, type) and issubclass(one, Optimizer) and one is not Optimizer]

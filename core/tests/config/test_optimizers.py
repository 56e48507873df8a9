"""`[optimizer]` is checked against the signature of the class that it names."""

from __future__ import annotations

import pytest
import torch

from tunesmith.config.optimizers import NAMED, optimizer_class, optimizer_problems
from tunesmith.errors import InputError
from tunesmith.muon import MuonAdamW


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("torch.optim.RMSprop", torch.optim.RMSprop),
        ("torch.optim.adam.Adam", torch.optim.Adam),
    ],
)
def test_names_and_import_paths(kind, expected):
    assert optimizer_class(kind) is expected


def test_every_optimizer_of_torch_but_the_unfit_ones_is_offered_and_accepts_its_defaults():
    for name in torch.optim.__all__:
        found = getattr(torch.optim, name)
        if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)) or name in ("Optimizer", "LBFGS", "SparseAdam"):
            continue
        assert optimizer_class(name.lower()) is (MuonAdamW if name == "Muon" else found)
        assert optimizer_problems({"type": name.lower()}) == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("adamW", "did you mean 'adamw'?"),
        ("admaw", "did you mean 'adamw'?"),
        ("optimizer", "type = 'optimizer': "),
        ("lbfgs", "LBFGS evaluates the loss several times per step"),
        ("sparseadam", "SparseAdam wants sparse gradients"),
        ("nothing_there.Adam", "cannot import 'nothing_there': ModuleNotFoundError"),
        ("torch.optim.Adamw", "unknown class of torch.optim 'Adamw'; did you mean 'AdamW'?"),
        ("torch.nn.Linear", "is no subclass of torch.optim.Optimizer"),
        ("torch.optim.", "unknown class of torch.optim ''"),
        (".AdamW", "cannot import"),
    ],
)
def test_what_is_no_optimizer(kind, message):
    with pytest.raises(InputError) as caught:
        optimizer_class(kind)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert optimizer_problems({"type": kind}) == [("type", str(caught.value))]


PRODIGY = "prodigy finds its own rate and multiplies it by lr: with lr = {} next to nothing would be learnt; write lr = 1.0"


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"wieght_decay": 0}, ("wieght_decay", "unknown setting of adamw 'wieght_decay'; did you mean 'weight_decay'?")),
        ({"warmpu": 3}, ("warmpu", "unknown setting of adamw 'warmpu'; did you mean 'warmup'?")),
        ({"params": []}, ("params", "'params' is not for a config to set: what is trained follows from the model and the plugins")),
        ({"betas": [0.9, 1.5]}, ("betas", "adamw refuses its arguments: Invalid beta parameter at index 1: 1.5")),
        ({"type": "sgd", "momentum": -1}, ("momentum", "sgd refuses its arguments: Invalid momentum value: -1")),
        ({"type": "adamw8bit", "betas": [2, 0.9]}, ("betas", "adamw8bit refuses its arguments: Invalid beta parameter at index 0: 2")),
        ({"betas": [0.9]}, ("betas", "betas = [0.9]: should be an array of 2 numbers")),
        ({"type": "adamw8bit", "betas": [0.9]}, ("betas", "betas = [0.9]: should be an array of 2 numbers")),
        ({"type": "ademamix8bit", "betas": [0.9, 0.99]}, ("betas", "betas = [0.9, 0.99]: should be an array of 3 numbers")),
        ({"type": "stableadamw", "betas": 0.9}, ("betas", "betas = 0.9: should be an array of 2 numbers")),
        ({"type": "muon", "adamw_betas": [0.9, "0.99"]}, ("adamw_betas", "adamw_betas = [0.9, '0.99']: should be an array of 2 numbers")),
        ({"type": "adamw8bit", "amsgrad": "yes"}, ("amsgrad", "amsgrad = 'yes': should be true or false")),
        ({"type": "torch.optim.AdamW", "weight_decay": True}, ("weight_decay", "weight_decay = true: should be a number")),
        ({"type": "prodigy"}, ("type", PRODIGY.format("0.0001"))),
        ({"type": "prodigyopt.Prodigy", "lr": 1e-3}, ("lr", PRODIGY.format("0.001").replace("prodigy", "prodigyopt.Prodigy", 1))),
        ({"eps": "x"}, ("eps", "eps = 'x': should be a number")),
    ],
)
def test_arguments_that_the_optimizer_does_not_take(table, problem):
    assert optimizer_problems(table) == [problem]


def test_the_cores_own_settings_are_no_arguments():
    assert optimizer_problems({"type": "adamw", "lr": 1.0, "warmup": 3, "clip_norm": False, "weight_decay": 0.1, "fused": False}) == []


@pytest.mark.parametrize("kind", NAMED)
def test_every_short_name_accepts_its_defaults(kind):
    pytest.importorskip(NAMED[kind].partition(".")[0])
    assert optimizer_problems({"type": kind, "lr": 1.0}) == []

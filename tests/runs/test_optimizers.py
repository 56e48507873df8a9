"""Optimizers of torch and of other libraries, by name and by import path: each trains, and goes on exactly where it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith import RunFailed
from tunesmith.config import ConfigErrors
from tunesmith.config.optimizers import NAMED
from tunesmith.config.tables import OptimizerTable
from tunesmith.engine import make_optimizer
from tunesmith.hooks import HookCaller
from tunesmith.loss import Loss
from tunesmith.randomness import seed_global

from .conftest import LORA, Result, Runner

QUIET = ("run.steps=3", "checkpoints.every=2", "validation.at_start=false", "validation.at_end=false", 'optimizer.schedule="constant"')
BY_PATH = ("adamw", "rmsprop", "optimi.RAdam", "bitsandbytes.optim.SGD8bit")
ARGUMENTS = {
    "prodigy": ("optimizer.lr=1.0",),
    "sgd_schedulefree": ("optimizer.lr=1.0",),
    "bitsandbytes.optim.SGD8bit": ("optimizer.momentum=0.9",),
    "radam_schedulefree": ("optimizer.silent_sgd_phase=false",),
}
"""What an optimizer must be given, or needs so that it moves in its first steps."""
FUSED = ("optimizer.fused_backward_pass=true", "optimizer.clip_norm=false")


def settings(kind: str) -> tuple[str, ...]:
    weights = ("run.weights='bf16'",) if kind == "adamw_stochastic" or NAMED.get(kind, kind).startswith("optimi.") else ()
    return (*QUIET, f"optimizer.type={kind!r}", "optimizer.lr=1e-3", *weights, *ARGUMENTS.get(kind, ()))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents and prompts, which are the same for all optimizers."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(train: Runner, cache: Path) -> Iterator[Runner]:
    """Run a config with the shared cache; torchao's updates, which it would compile for each shape, as they are written."""
    with torch.compiler.set_stance("force_eager"):
        yield lambda *arguments, **options: train(*arguments, f"run.cache_dir={str(cache)!r}", **options)


def kept(result: Result, step: int) -> dict[str, Tensor]:
    """All weights of a checkpoint, those to use and those to go on from."""
    folder = result.path / f"checkpoints/step-{step:06d}"
    return {f"{file.relative_to(folder)}:{name}": one for file in folder.rglob("*.safetensors") for name, one in load_file(file).items()}


def are_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", [*NAMED, *BY_PATH])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_it_trains_and_resumes_exactly(start, kind):
    """The whole model, so that there are weights of all shapes, and some large enough for states of few bits."""
    whole = start("whole", "", *settings(kind))
    parts = start("parts", "", *settings(kind), resume=str(whole.path / "checkpoints/step-000002"))
    assert parts.losses == {step: loss for step, loss in whole.losses.items() if step > 2}
    assert are_equal(kept(whole, 3), kept(parts, 3))
    assert not are_equal(kept(whole, 2), kept(whole, 3))


def test_muon_takes_the_adapters_of_blocks_and_adamw_the_rest(start):
    result = start("adapter", LORA, *settings("muon"))
    muon, *others = torch.load(result.path / "checkpoints/step-000003/training/state.pt", weights_only=True)["optimizer"]["parts"]
    assert others == []
    assert len(muon["state"]) == len(load_file(result.path / "final/pytorch_lora_weights.safetensors"))
    whole = start("whole", "", *settings("muon"))
    muon, adamw = torch.load(whole.path / "checkpoints/step-000003/training/state.pt", weights_only=True)["optimizer"]["parts"]
    assert {tuple(slots["momentum_buffer"].shape) for slots in muon["state"].values()} == {(32, 32)}  # to_q to to_out, twice in each block
    assert len(muon["state"]) == 8 * len({name.split(".")[2] for name in kept(whole, 3) if "transformer_blocks" in name})
    assert {(192, 32), (6, 32), (2, 32), (32, 256)} < {tuple(slots["exp_avg"].shape) for slots in adamw["state"].values()}


def test_updates_within_backward_change_no_number(start):
    more = ("optimizer.clip_norm=false", "run.gradient_checkpointing=true")
    ema = "[plugins.ema]\n"
    plain, fused = start("plain", ema, *settings("adamw"), *more), start("fused", ema, *settings("adamw"), *more, *FUSED)
    parts = start("parts", ema, *settings("adamw"), *more, *FUSED, resume=str(fused.path / "checkpoints/step-000002"))
    assert plain.losses == fused.losses
    assert are_equal(kept(plain, 3), kept(fused, 3))
    assert are_equal(fused.weights(3), parts.weights(3))
    norms, same = ([event["gradient_norm"] for event in one.events if event["event"] == "step"] for one in (plain, fused))
    assert same == pytest.approx(norms, rel=1e-6)
    with pytest.raises(ConfigErrors, match="gradients cannot be accumulated"):
        start("many", "", *FUSED, "run.gradient_accumulation=2")
    with pytest.raises(ConfigErrors, match='does not wait for that; use "bf16"'):
        start("scaled", "", *FUSED, "run.precision='fp16'")


def test_a_loss_that_is_not_finite_changes_no_weight_within_backward_either(start, monkeypatch):
    before: list[Tensor] = []
    after: list[Tensor] = []
    compute = HookCaller.compute_loss

    def spoilt(self, run, step):
        loss = compute(self, run, step)
        weights = [*run.model.denoiser.parameters()]
        if step.index < 2:
            return loss
        before.extend(weight.detach().clone() for weight in weights)
        after.extend(weights)
        return Loss(loss.elements * float("nan"))

    monkeypatch.setattr(HookCaller, "compute_loss", spoilt)
    with pytest.raises(RunFailed, match=r"the loss of step 3 is not finite \(nan\), and did not change the weights"):
        start("spoilt", "", *settings("adamw"), *FUSED)
    assert before
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize(("kind", "arguments"), [("adamw", {}), ("adamw_stochastic", {}), ("adamw_kahan", {"betas": [0.9, 0.999]})])
def test_updates_that_are_too_small_for_bf16_count_where_the_optimizer_sees_to_it(kind, arguments):
    """Updates of 1e-4 on weights of 1, where the next number below in bf16 is 4e-3 away, against AdamW on fp32 weights."""
    steps, lr = 200, 1e-4
    weight, exact = (torch.nn.Parameter(torch.ones(64, 64, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    optimizer = make_optimizer([weight], OptimizerTable.model_validate({"type": kind, "lr": lr, "weight_decay": 0.0, **arguments}))
    reference = torch.optim.AdamW([exact], lr=lr, weight_decay=0.0)
    with torch.compiler.set_stance("force_eager"):
        for step in range(steps):
            seed_global(step, torch.device("cpu"))
            gradient = torch.rand(64, 64, generator=torch.Generator().manual_seed(step)).bfloat16()
            weight.grad, exact.grad = gradient, gradient.float()
            optimizer.step()
            reference.step()
    moved, wanted = 1 - weight.detach().double(), 1 - exact.detach().double()
    assert wanted.mean().item() == pytest.approx(0.9 * steps * lr, rel=0.2)
    if kind == "adamw":
        assert not moved.any()
    elif kind == "adamw_stochastic":  # a weight goes astray as the root of the steps does, their mean is right
        assert moved.mean().item() == pytest.approx(wanted.mean().item(), abs=5 * moved.std().item() / 64)
    else:  # what is lacking is kept beside, so each weight is right
        assert (moved - wanted).abs().max().item() < 2**-8


def test_what_is_saved_and_shown_of_a_schedule_free_run_is_its_average(start):
    """Weights y that are trained at, z that steps are made of, x = y + (1 - 1 / beta) (z - y) to use (2405.15682)."""
    result = start("free", LORA, *settings("adamw_schedulefree"))
    state = torch.load(result.path / "checkpoints/step-000003/training/state.pt", weights_only=True)["optimizer"]["state"]
    exported = load_file(result.path / "final/pytorch_lora_weights.safetensors")
    trained = load_file(result.path / "checkpoints/step-000003/training/weights.safetensors")
    assert len(trained) == len(state)
    for number, (name, y) in enumerate(sorted_by_layer(trained)):
        z = state[number]["z"]
        x = y.double() + (1 - 1 / 0.9) * (z.double() - y.double())
        told = exported[name.replace("denoiser.", "transformer.").replace(".default", "")]
        torch.testing.assert_close(told.double(), x, rtol=0, atol=1e-7)
        if bool((z != y).any()):
            assert not torch.equal(told, y)


def sorted_by_layer(weights: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """In the order in which an optimizer numbers them: block by block, and in each of its layers first A, then B."""
    layers = ("to_q", "to_k", "to_v", "to_out.0")

    def place(name: str) -> tuple[int, int, int, int]:
        parts = name.split(".")
        layer = next(number for number, one in enumerate(layers) if f".{one}.lora_" in name)
        return int(parts[2]), int(parts[3][-1]), layer, "lora_B" in name

    return sorted(weights.items(), key=lambda item: place(item[0]))


def test_a_name_that_nearly_is_one_and_a_library_that_is_missing_are_told(train, monkeypatch):
    with pytest.raises(ConfigErrors, match="did you mean 'adamw8bit'"):
        train("misspelt", LORA, "optimizer.type='adamw8bits'")
    monkeypatch.setitem(__import__("sys").modules, "optimi", None)
    with pytest.raises(ConfigErrors, match="pip install torch-optimi"):
        train("missing", LORA, "optimizer.type='stableadamw'")

"""Which kernel computes attention, when, and what is refused."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from safetensors.torch import load_file

from tests.runs.conftest import shades, short_run, start_run
from tests.runs.filming import twin_of
from tunesmith.config import ConfigErrors
from tunesmith_attention_backend.plugin import KERNELS, WITHOUT_BACKWARD, WITHOUT_MASKS, refusal

__all__ = ["shades", "twin_of"]

Runner = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, twin_of: Callable[[str], Path], shades: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Train on a few pictures, with `extra` and overrides; gives the run's directory."""
    monkeypatch.chdir(tmp_path)
    model = f'family = "sana_video"\npath = {str(twin_of("sana_video"))!r}'
    dataset = f"path = {str(shades)!r}\nresolution = 64"

    def start(name: str, extra: str, *overrides: str) -> Path:
        text = short_run(model, "lr = 1e-4", dataset, TABLES + extra, steps=2, batch_size=1)
        return start_run(tmp_path / f"{name}.toml", text, overrides).path

    return start


TABLES = """
[validation]
prompts = { grey = "a shade" }
resolutions = ["64x64"]
num_frames = 1
steps = 1
at_start = false

[plugins.video]

"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, bool]]:
    """How often each kernel was called, with gradients and without."""
    counted: Counter[tuple[str, bool]] = Counter()

    def watched(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(**given: Any) -> Any:
            counted[name, torch.is_grad_enabled()] += 1
            return kernel(**given)

        return call

    for name, kernel in list(_AttentionBackendRegistry._backends.items()):
        monkeypatch.setitem(_AttentionBackendRegistry._backends, name, watched(AttentionBackendName(name).value, kernel))
    return counted


TABLE = '[plugins.attention_backend]\ntraining = "native"\nvalidation = "_native_math"\n'

OTHER = '[plugins.attention_backend]\ntraining = "_native_math"\n'


@pytest.mark.parametrize(("checkpointing", "forwards"), [("false", 1), ("true", 2)])
def test_each_phase_has_its_kernel_also_when_blocks_run_again(
    train: Runner, calls: Counter[Any], checkpointing: str, forwards: int
) -> None:
    blocks = 4
    train("chosen", TABLE, f"run.gradient_checkpointing={checkpointing}")
    assert calls["native", True] == 2 * blocks * forwards
    assert calls["_native_math", False] == blocks
    assert set(calls) == {("native", True), ("_native_math", False)}
    assert _AttentionBackendRegistry._active_backend == AttentionBackendName.NATIVE


def test_what_a_step_predicts_without_a_gradient_is_computed_as_the_rest_of_the_step(train: Runner, calls: Counter[Any]) -> None:
    """Rollouts, and the target of samples that keep what the model knows; the sample of validation is no part of a step."""
    blocks = 4
    rollouts = "[plugins.scheduled_sampling]\nmax_steps = 4\noffsets = 'biased_late'\nprobability = 1.0\n"
    train("rolled", TABLE + rollouts)
    rolled_out = calls["native", False]
    assert rolled_out > 0
    assert calls == {("native", True): 2 * blocks, ("native", False): rolled_out, ("_native_math", False): blocks}
    calls.clear()
    train("kept", TABLE + "[plugins.lora]\nrank = 2\n", "datasets.0.is_regularisation=true")
    assert calls == {("native", True): 2 * blocks, ("native", False): 2 * blocks, ("_native_math", False): blocks}


def test_another_kernel_learns_the_same(train: Runner) -> None:
    plain, chosen = (
        train(name, table) / "final/transformer/diffusion_pytorch_model.safetensors" for name, table in (("a", ""), ("b", OTHER))
    )
    first, second = load_file(plain), load_file(chosen)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("kernel", "trains", "sentence"),
    [
        ("flsh", True, "there is no such kernel; diffusers has flash, "),
        ("sage", True, "it computes no gradient; use it for validation"),
        ("_sage_qk_int8_pv_fp16_cuda", True, "it computes no gradient"),
        ("sage", False, "it needs a GPU; on a CPU there are native, _native_flash, _native_math"),
        ("flex", True, "it needs a GPU"),
    ],
)
def test_a_kernel_that_cannot_be_used_is_refused_by_name(kernel: str, trains: bool, sentence: str) -> None:
    assert sentence in str(refusal(kernel, "cpu", trains=trains, masks=False))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert "install `flash-attn" in str(refusal("flash", "cuda", trains=True, masks=False))


def test_every_kernel_of_diffusers_gets_an_answer_on_a_cpu() -> None:
    assert {name for name in KERNELS if refusal(name, "cpu", trains=True, masks=False) is None} == {
        "native",
        "_native_flash",
        "_native_math",
    }


def test_a_family_that_would_ignore_it_refuses(train: Runner, twin_of: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigErrors, match=r"sana computes attention by itself and would ignore every kernel"):
        train("ignored", TABLE, "model.family='sana'", f"model.path={str(twin_of('sana'))!r}", "validation.num_frames=1")


def test_kernels_that_diffusers_wraps_in_an_operator_without_a_gradient_are_refused_for_training() -> None:
    """Of its operators none has a formula for backward."""
    source = inspect.getsource(attention_dispatch)
    wrapped = [part.partition("def ")[2].partition("(")[0] for part in source.split("@_custom_op(")[1:]]
    assert wrapped
    assert "register_autograd" not in source
    kernels = {AttentionBackendName(name).value: inspect.getsource(kernel) for name, kernel in _AttentionBackendRegistry._backends.items()}
    without = {name for name, text in kernels.items() if any(f"{operator}(" in text for operator in wrapped)}
    assert without
    assert without <= WITHOUT_BACKWARD
    assert "it computes no gradient" in str(refusal("_flash_3", "cuda", trains=True, masks=False))
    assert "no gradient" not in str(refusal("_flash_3_hub", "cuda", trains=True, masks=False))


def test_kernels_without_masks_are_those_that_diffusers_lets_fail(train: Runner) -> None:
    """Each of them raises where it is given a mask, before it looks at anything else."""
    refusing = set()
    for name, kernel in _AttentionBackendRegistry._backends.items():
        if "`attn_mask` is not supported" in inspect.getsource(kernel):
            refusing.add(AttentionBackendName(name).value)
    assert refusing == WITHOUT_MASKS
    with pytest.raises(ConfigErrors, match=r"_native_flash.*it takes no mask"):
        train("masked", '[plugins.attention_backend]\ntraining = "_native_flash"\n')

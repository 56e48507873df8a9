"""The attention plugin: which kernel computes attention, through diffusers' dispatcher, while training and in validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from diffusers import attention_backend
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn

from tunesmith import Config, Family, Model, Part, Plugin, Run, Settings, Stage, Wrapper, hookimpl

NATIVE = "native"
KERNELS = tuple(kernel.value for kernel in AttentionBackendName)
"""The names that diffusers knows."""
WITHOUT_BACKWARD = frozenset(["_flash_3", *(kernel for kernel in KERNELS if kernel.startswith(("sage", "_sage")))])
"""Those that have no gradient: diffusers wraps `_flash_3` in an operator without one, and the others compute in eight bits."""
WITHOUT_MASKS = frozenset(
    ["flash", "flash_hub", "flash_4_hub", "_flash_3", "_flash_3_hub", "aiter_fa2_hub", "_native_flash", "_native_xla", "sage", "sage_hub"]
) | {"sage_blackwell_hub", *(kernel for kernel in KERNELS if kernel.startswith("_sage"))}
"""Those that take no mask."""
ON_CPU = (NATIVE, "_native_flash", "_native_math", "flex")
"""Those that work without a GPU; of `flex` forward only."""


class AttentionBackendSettings(Settings):
    """`[plugins.attention_backend]`: the kernels, by diffusers' names; those that begin with `_` are ones that it calls internal."""

    training: str = NATIVE
    """While training: `native` is torch's own, `flash` the package flash-attn, `flash_hub` a kernel from the Hub, and so on."""
    validation: str = NATIVE
    """While samples are made, where kernels without a gradient such as `sage` will do."""


class AttentionBackend(Plugin[AttentionBackendSettings]):
    """Compute attention with another kernel, without touching what other models of the process use."""

    stage = Stage.LOAD

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Kernels that there are not, that cannot be used here, or that the family would not use."""
        if family.dispatched_attention is None:
            told = f"{family.name} computes attention by itself and would ignore every kernel; take [plugins.{self.name}] out"
            yield ("plugins", self.name), told
            return
        for phase, kernel in (("training", self.settings.training), ("validation", self.settings.validation)):
            reason = refusal(kernel, config.device.type, trains=phase == "training", masks=family.masks_attention)
            if reason is not None:
                yield ("plugins", self.name, phase), f"{phase} = {kernel!r}: {reason}"

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """Which part of the family's attention it is."""
        training, validation = self.settings.training, self.settings.validation
        yield f"of {family.name} it computes {family.dispatched_attention}: by {training} in training, by {validation} in validation"

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Switch the kernel on around every block, where it runs again for backward too."""
        model = yield
        if part is Part.DENOISER:
            entered: list[AbstractContextManager[Any]] = []
            for entry in model.trunk():
                entry.module.register_forward_pre_hook(partial(self._enter, entered, run))
                entry.module.register_forward_hook(partial(self._leave, entered), always_call=True)
        return model

    def _enter(self, entered: list[AbstractContextManager[Any]], run: Run, module: nn.Module, *_: Any) -> None:
        # by the step and not by the module's mode: what is predicted within a step without a gradient settles what is learnt, too
        is_learning = run.current is not None and run.current.mode == "train"
        kernel = self.settings.training if is_learning else self.settings.validation
        context = attention_backend(kernel)
        context.__enter__()
        entered.append(context)

    def _leave(self, entered: list[AbstractContextManager[Any]], *_: Any) -> None:
        entered.pop().__exit__(None, None, None)


def refusal(kernel: str, device: str, *, trains: bool, masks: bool) -> str | None:
    """Why a kernel cannot be used on a kind of device, or None."""
    if kernel not in KERNELS:
        return f"there is no such kernel; diffusers has {', '.join(KERNELS)}"
    if trains and kernel in WITHOUT_BACKWARD:
        return "it computes no gradient; use it for validation, and native or flash for training"
    if masks and kernel in WITHOUT_MASKS:
        return "it takes no mask, and the family's attention has one: that of the prompt; native takes masks, and so do the varlen kernels"
    has_gpu = device != "cpu" and torch.accelerator.is_available()
    if not has_gpu and (kernel not in ON_CPU or (trains and kernel == "flex")):
        return f"it needs a GPU; on a CPU there are {', '.join(ON_CPU[:3])}"
    try:
        with attention_backend(kernel):
            return None
    except (RuntimeError, ImportError) as error:
        return " ".join(str(error).split())

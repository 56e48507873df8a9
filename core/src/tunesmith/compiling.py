"""Blocks as compiled graphs: one for each shape that blocks are given, which all blocks of a kind share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from .errors import InputError
from .run import Run

MANY_GRAPHS = 64
"""So many graphs are more than the sizes of samples explain; they are told of, and again whenever they have doubled."""
NO_LIMIT = 2**16
"""More graphs than any run makes: behind its own limit dynamo would let blocks run as they are, without a word to our users."""


def lower(graph: GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
    """A function of a graph that dynamo traced, made by inductor; it draws random numbers with torch's own generator."""
    from torch._inductor.compile_fx import compile_fx  # which takes seconds to import

    return cast(Callable[..., Any], compile_fx(graph, list(examples), config_patches={"fallback_random": True}))


def require_compiler(device: torch.device) -> None:
    """InputError, with what is missing, unless a function of one line can be compiled for this device."""
    logger = logging.getLogger("torch._inductor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        torch.compile(_trial, backend=lower)(torch.ones(64, device=device))
    except RuntimeError as error:
        told = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in told if "error: " in line), told[0])  # a compiler's own words, if it was one that failed
        raise InputError(
            f'[run] compile = "blocks" cannot be had here: {reason}. It needs a C++ compiler such as g++ and the headers of Python, '
            "and on a GPU triton; install what is missing, or take it out"
        ) from error
    finally:
        logger.setLevel(before)


def compile_blocks(run: Run) -> None:
    """Let every block of the trunk compute by compiled graphs, which its hooks, all in place by now, stay outside of.

    Blocks of the same kind, layer for layer, share their graphs; another shape makes another graph, so what varies from
    batch to batch for no other reason than to save work is padded from now on. An inner layer that has hooks is called
    between two graphs.
    """
    without_limit = torch._dynamo.config.patch(recompile_limit=NO_LIMIT, accumulated_recompile_limit=NO_LIMIT)
    run.model.fixed_lengths = True
    count, compiled = _Count(run), {}
    for entry in run.model.blocks:
        block = entry.module
        kind = _kind(block)
        if kind not in compiled:
            # around each call, for dynamo's settings are those of a thread, and backward may call a block in another one
            compiled[kind] = without_limit(torch.compile(_function(block), backend=_Backend(count), dynamic=False))
        _leave_hooks_out(block)
        block.forward = MethodType(compiled[kind], block)  # so that a copy of the block computes with weights of its own
    run.progress.message(
        f"compile: {len(run.model.blocks)} blocks of {len(compiled)} kind{'s' if len(compiled) > 1 else ''}; "
        "the first steps of every size of samples wait for that"
    )


class _Count:
    """Counts graphs, and tells when they are many."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.graphs = 0

    def __call__(self) -> None:
        self.graphs += 1
        doublings, rest = divmod(self.graphs, MANY_GRAPHS)
        if not rest and doublings & (doublings - 1) == 0:
            told = f"{self.graphs} graphs of blocks are compiled by now, one or some for each size of samples and number of tokens"
            self.run.progress.message(f"{told}; if steps keep waiting for them, use fewer sizes, or take [run] compile out")
            self.run.emit("warning", message=told)


class _Backend:
    """What dynamo compiles by; graphs are shared only where it is the very same one."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell

    def __call__(self, graph: GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        self.tell()
        return lower(graph, examples)


def _trial(states: Tensor) -> Tensor:
    return states.sin() + 1


def _function(block: nn.Module) -> Callable[..., Any]:
    """The block's forward as a function of the block: that of its class, unless a plugin has replaced it."""
    forward = block.forward
    if isinstance(forward, MethodType) and forward.__self__ is block:
        return forward.__func__
    return lambda self, *args, **kwargs: forward(*args, **kwargs)


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """What blocks must have in common to share graphs; a graph that was traced without hooks would serve a block that has them."""
    return _function(block), *((name, type(layer), _has_hooks(layer)) for name, layer in block.named_modules() if name)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _leave_hooks_out(block: nn.Module) -> None:
    """End a graph before each hook of an inner layer, and begin another behind it: what a hook does differs from step to step."""
    for name, layer in block.named_modules():
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks) if name else ():
            for key, hook in hooks.items():
                hooks[key] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]

"""`[run] compile = "blocks"`: the same numbers by compiled graphs, whatever else is on, or one message before anything starts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tunesmith import Run, TrunkModule, compiling
from tunesmith.config import ConfigErrors

from .conftest import Result
from .test_resume import assert_same_run, stopped_after

EVERY_STEP = "[checkpoints]\nevery = 1\n"
COMPILED = "run.compile='blocks'"
ROUTE = "[plugins.tread]\nroutes = [{ ratio = 0.5, start = 1, end = 2 }]\n"
LORA = "[plugins.lora]\nrank = 4\nalpha = 8\n"


@pytest.fixture
def forgetting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo as it was, before and after; pytest, which takes every record of a log, need not have those of its trace."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "level", logging.CRITICAL)
    logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def inductor(forgetting: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The real compiler with a cache of its own, and without what takes it long: worker processes, and to find out what the CPU can."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with config.patch({"compile_threads": 1, "cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": False}):
        yield


@pytest.fixture
def graphs(forgetting: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is compiled, to functions that call operation after operation: dynamo's part, and not inductor's, which takes long."""
    seen: list[Any] = []

    def lower(graph: torch.fx.GraphModule, examples: Any) -> Any:
        seen.append(graph)
        return torch._dynamo.lookup_backend("eager")(graph, list(examples))

    monkeypatch.setattr(compiling, "lower", lower)
    return seen


@pytest.fixture
def without_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that do not try the compiler, which they do without."""
    monkeypatch.setattr("tunesmith.session.require_compiler", lambda device: None)


def test_a_run_by_graphs_is_the_run_without_and_resumes_exactly(train, graphs, without_trial, monkeypatch):
    settings = ("run.steps=3", "validation.at_start=false", "validation.at_end=false", COMPILED)
    plain, compiled = train("plain", EVERY_STEP, *settings[:-1]), train("compiled", EVERY_STEP, *settings)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    assert_weights_are_close(compiled, plain)
    assert 2 <= len(graphs) <= 4  # the first block and the others, for two shapes of pictures, however long their captions are
    with stopped_after(1, monkeypatch):
        train("stopped", EVERY_STEP, *settings)
    assert_same_run(compiled, train("stopped", EVERY_STEP, *settings), 3)


@pytest.fixture
def squares(pictures: Path, tmp_path: Path) -> Path:
    """The pictures of one shape, for whose sake nothing is compiled twice."""
    for number in range(4):
        for suffix in ("png", "txt"):
            file = tmp_path / "squares" / f"{number}.{suffix}"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes((pictures / file.name).read_bytes())
    return tmp_path / "squares"


def test_adapters_come_and_go_tokens_bypass_blocks_and_blocks_are_computed_twice(train, squares, graphs, without_trial):
    kept = f"[[datasets]]\nname = 'kept'\nis_regularisation = true\npath = {str(squares)!r}\nresolution = 64\n"
    settings = ["run.steps=3", "run.gradient_checkpointing=true", "validation.at_start=false", "validation.at_end=false"]
    settings.append(f"datasets.0.path={str(squares)!r}")
    plain, compiled = (train(name, LORA + ROUTE + kept, *settings, *more) for name, more in (("plain", ()), ("compiled", (COMPILED,))))
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    assert_weights_are_close(compiled, plain)
    assert len(graphs) > 10


def assert_weights_are_close(one: Result, other: Result) -> None:
    """After three updates of about 1e-3 each; where a gradient is next to nothing, rounding is all of it."""
    weights = one.weights(3)
    for name, value in other.weights(3).items():
        if not name.startswith("optimizer:"):
            torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-4)


class Block(nn.Module):
    """A block with layers inside that hooks can be put on."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.outer(self.inner(self.norm(hidden)).tanh())
        return out


class Trunk:
    """As much of a run as is compiled: blocks, one after the other."""

    def __init__(self, *blocks: Block) -> None:
        self.blocks: Sequence[Any] = blocks
        self.told: list[str] = []
        entries = [TrunkModule(str(number), block, is_block=True) for number, block in enumerate(blocks)]
        self.model = SimpleNamespace(blocks=entries, fixed_lengths=False)
        self.progress = SimpleNamespace(message=self.told.append)

    def emit(self, kind: str, **data: Any) -> None:
        self.told.append(kind)

    def compile(self) -> Trunk:
        compiling.compile_blocks(cast(Run, self))
        return self

    def step(self, tokens: int = 6) -> list[Tensor]:
        """What comes out for a draw of states [2, tokens, 8], and the gradients."""
        torch.manual_seed(tokens)
        hidden = states = torch.randn(2, tokens, 8, requires_grad=True)
        for block in self.blocks:
            hidden = block(hidden)
        weights = [weight for block in self.blocks for weight in block.parameters()]
        return [hidden, *torch.autograd.grad(hidden.square().sum(), [states, *weights])]


def trunk(count: int = 3) -> Trunk:
    torch.manual_seed(0)
    return Trunk(*(Block() for _ in range(count)))


def test_inductor_gives_the_numbers_of_plain_blocks(inductor):
    plain, compiled = trunk(2), trunk(2).compile()
    for expected, found in zip(plain.step(), compiled.step(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert compiled.model.fixed_lengths


def test_blocks_of_a_kind_share_a_graph_for_each_shape(graphs):
    compiled = trunk(5).compile()
    compiled.step(6)
    assert len(graphs) == 1
    for tokens in range(7, 20):  # more than dynamo's own limit
        compiled.step(tokens)
    assert len(graphs) == 14
    compiled.step(6)
    assert len(graphs) == 14


def test_the_limits_of_dynamo_do_not_count_for_blocks_in_any_thread_and_do_for_everything_else(graphs):
    config, lengths = torch._dynamo.config, range(2, 22)
    compiled = trunk(1).compile()
    with ThreadPoolExecutor(1) as another:
        another.submit(lambda: [compiled.step(tokens) for tokens in lengths[:10]]).result()
    for tokens in lengths[10:]:
        compiled.step(tokens)
    assert len(graphs) == len(lengths)
    assert (config.recompile_limit, config.accumulated_recompile_limit) == (8, 256)
    other = torch.compile(lambda states: states.sin() + 1, backend=compiling.lower, dynamic=False)
    for tokens in lengths:
        other(torch.ones(tokens))
    assert len(graphs) == len(lengths) + 8


class Calls:
    """A hook that is something else each time that it is called, as dynamo sees it, and makes more of an output."""

    def __init__(self, factor: int | None = None) -> None:
        self.count, self.factor = 0, factor

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        self.count += 1
        return None if self.factor is None else given[-1] * self.factor


@pytest.mark.parametrize("place", ["inner", ""])
def test_a_hook_is_called_every_time_and_on_its_own_block_alone(graphs, place):
    made, before, behind = trunk(4), Calls(), Calls(factor=2)
    layer = made.blocks[2].get_submodule(place)
    handle = layer.register_forward_pre_hook(before)
    layer.register_forward_hook(behind)
    expected = made.step()
    made.compile()
    for _ in range(3):
        for value, found in zip(expected, made.step(), strict=True):
            torch.testing.assert_close(found, value)
        assert len(graphs) == (1 if place == "" else 4)  # of the hooked one what comes before the layer, the layer, and what follows
    assert before.count == behind.count == 4
    handle.remove()
    made.step()
    assert (before.count, behind.count) == (4, 5)


def test_blocks_that_differ_inside_share_nothing(graphs):
    made = trunk(3)
    changed = made.blocks[1].inner
    plain = changed.forward
    changed.forward = lambda states: 3 * plain(states)
    expected = made.step()
    for value, found in zip(expected, made.compile().step(), strict=True):
        torch.testing.assert_close(found, value)
    assert len(graphs) == 2


def test_a_copy_of_a_compiled_block_computes_with_its_own_weights(graphs):
    made = trunk(1)
    names = list(made.blocks[0].state_dict())
    made.compile()
    twin = copy.deepcopy(made.blocks[0]).eval()
    states = torch.randn(1, 4, 8)
    before = made.blocks[0].eval()(states)
    with torch.no_grad():
        twin.outer.bias += 1
    torch.testing.assert_close(twin(states), before + 1)
    torch.testing.assert_close(made.blocks[0](states), before)
    assert list(made.blocks[0].state_dict()) == names


def test_many_graphs_are_told_of_when_they_have_doubled(graphs, monkeypatch):
    monkeypatch.setattr(compiling, "MANY_GRAPHS", 2)
    made = trunk(1).compile()
    for tokens in range(2, 9):
        made.step(tokens)
    assert [line.split()[0] for line in made.told[1:]] == ["2", "warning", "4", "warning"]


def test_a_machine_without_a_compiler_gets_one_message_before_anything_is_loaded(train, inductor, tmp_path):
    from torch._inductor import config

    missing = pytest.raises(ConfigErrors, match=r'compile = "blocks" cannot be had here: .*No working C\+\+ compiler')
    with config.patch({"cpp.cxx": ("/nowhere/g++",)}), missing as caught:
        train("refused", "", COMPILED)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache").exists()

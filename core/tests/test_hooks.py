"""The façade: order of calls, checked results, named culprits, isolated observers."""

from typing import Any

import pytest
import torch

from tunesmith import Batch, Event, Kind, KindPlugin, Loss, Plugin, Report, Settings, SourcePlugin, Stage, Step, hookimpl
from tunesmith.config.datasets import ImageTable
from tunesmith.contract import complaints, provider_complaints
from tunesmith.hooks import HookCaller


class Nothing(Settings):
    """No settings."""


TRACE: list[str] = []


class Provider(Plugin[Nothing]):
    """Provides a loss."""

    stage = Stage.LOAD

    @hookimpl
    def compute_loss(self, run, step):
        TRACE.append("provide")
        return Loss(torch.ones(2))

    @hookimpl
    def on_step(self, run, step):
        TRACE.append(self.name)


class Wraps(Plugin[Nothing]):
    """Wraps the loss and acts on steps."""

    stage = Stage.OBJECTIVE

    @hookimpl(wrapper=True)
    def compute_loss(self, run, step):
        TRACE.append(f"{self.name} before")
        loss = yield
        TRACE.append(f"{self.name} after")
        loss.add(self.name, torch.ones(()))
        return loss

    @hookimpl
    def on_step(self, run):
        TRACE.append(self.name)


class Outer(Wraps):
    """The same, further out."""

    stage = Stage.AVERAGE


def caller(**plugins):
    return HookCaller([plugin(name, Nothing()) for name, plugin in plugins.items()])


def a_step():
    zero = torch.zeros(1)
    return Step(0, 0, 0, "train", Batch(), zero, zero, zero, zero)


@pytest.fixture(autouse=True)
def _clean():
    TRACE.clear()


def test_code_before_a_yield_runs_from_the_outside_in_and_the_rest_from_the_inside_out():
    hooks = caller(base=Provider, inner=Wraps, outer=Outer)
    loss = hooks.compute_loss(None, a_step())
    assert TRACE == ["outer before", "inner before", "provide", "inner after", "outer after"]
    assert loss.total.item() == 3
    TRACE.clear()
    hooks.on_step(None, a_step())
    assert TRACE == ["base", "inner", "outer"]
    assert hooks.nesting("compute_loss") == [("outer", "wrapper"), ("inner", "wrapper"), ("base", "provider")]


class Fails(Wraps):
    """Raises before, or after, or answers."""

    @hookimpl(wrapper=True)
    def compute_loss(self, run, step):
        loss = yield
        raise ValueError("no such token")
        return loss


def test_an_error_names_the_plugin_that_raised_it_once():
    with pytest.raises(ValueError, match="no such token") as caught:
        caller(base=Provider, culprit=Fails, outer=Outer).compute_loss(None, a_step())
    assert caught.value.__notes__ == ["in compute_loss of plugin 'culprit'"]


class Forgets(Wraps):
    """Forgets its return."""

    @hookimpl(wrapper=True)
    def compute_loss(self, run, step):
        yield


def test_a_wrapper_that_drops_the_result_is_named():
    with pytest.raises(RuntimeError, match=r"Forgets\.compute_loss wraps compute_loss but returns nothing"):
        caller(base=Provider, careless=Forgets, outer=Outer).compute_loss(None, a_step())


class WrongType(Provider):
    """Returns a number."""

    @hookimpl
    def compute_loss(self, run, step):
        return 3.0


class Reduces(Wraps):
    """Returns the reduced loss instead of the loss."""

    @hookimpl(wrapper=True)
    def compute_loss(self, run, step):
        loss = yield
        return loss.total


def test_a_wrapper_that_returns_the_wrong_type_is_named():
    with pytest.raises(TypeError, match="compute_loss of plugin 'culprit' returned Tensor; it must return Loss") as caught:
        caller(base=Provider, culprit=Reduces, outer=Outer).compute_loss(None, a_step())
    assert caught.value.__notes__ == ["in compute_loss of plugin 'culprit'"]


def test_a_result_of_the_wrong_type_is_named():
    with pytest.raises(TypeError, match="compute_loss of plugin 'base' returned float; it must return Loss"):
        caller(base=WrongType).compute_loss(None, a_step())


class Tracker(Plugin[Nothing]):
    """A tracker that is offline."""

    stage = Stage.REPORT

    @hookimpl
    def log(self, run, event):
        raise ConnectionError("refused")


class Listener(Plugin[Nothing]):
    """A tracker that works and takes only what it needs."""

    stage = Stage.REPORT

    @hookimpl
    def log(self, event):
        TRACE.append(event.kind)


def test_a_failing_observer_is_reported_muted_after_three_and_stops_nobody():
    hooks = caller(broken=Tracker, works=Listener)
    for count in range(4):
        if count < 3:
            with pytest.warns(UserWarning, match="plugin 'broken' could not log 'step': refused"):
                hooks.log(None, Event("step", count))
        else:
            hooks.log(None, Event("step", count))
    assert TRACE == ["step"] * 4


class Mistaken(Plugin[Nothing]):
    stage = 3  # type: ignore[assignment]

    @hookimpl
    def compute_los(self, run): ...

    def validate(self, run, report): ...

    @hookimpl(wrapper=True)
    def encode_batch(self, run, batches):
        yield

    @hookimpl(wrapper=True)
    def load_model(self, run, part): ...

    @hookimpl
    def on_step(self, run, step):
        yield


def test_every_breach_of_the_contract_is_one_sentence():
    found = complaints(Mistaken)
    for expected in [
        "Mistaken has no stage",
        "Mistaken has no docstring",
        "compute_los is marked as a hook, but there is none of that name; did you mean compute_loss?",
        "Mistaken.validate is named like a hook but is not marked",
        "Mistaken.encode_batch asks for batches; encode_batch offers run, batch",
        "Mistaken.load_model is a wrapper without a yield",
        "Mistaken.on_step yields, but is not marked",
    ]:
        assert any(expected in sentence for sentence in found), (expected, found)
    assert len(found) == 7
    assert complaints(Wraps) == []
    assert "not a subclass" in complaints("tunesmith")[0]


def test_a_plugin_that_brings_data_says_which_kind_and_lists_files():
    class HalfKind(Kind[ImageTable]):
        """Reads nothing."""

        suffixes = frozenset({".x"})

    class Kindless(KindPlugin[Nothing]):
        """Brings no kind."""

        stage = Stage.LOAD

    class Half(KindPlugin[Nothing]):
        """Brings half a kind."""

        stage = Stage.LOAD
        kind = HalfKind

    class Listless(SourcePlugin[Nothing, Any]):
        """Lists nothing."""

        stage = Stage.LOAD

    assert complaints(Kindless) == ["Kindless brings no kind: write kind = MyKind, a subclass of tunesmith.Kind"]
    assert complaints(Half) == ["Half's kind HalfKind lacks table_type, probing, modalities, part, pieces, probe"]
    assert [sentence.split(":")[0] for sentence in complaints(Listless)] == [
        "Listless does not name the settings of `source`",
        "Listless lists no files",
    ]


def test_the_first_three_hooks_have_exactly_one_provider():
    assert any("compute_loss is provided by 'a' and 'b'" in sentence for sentence in provider_complaints({"a": Provider, "b": Provider}))
    assert any("load_model is provided by no active plugin" in sentence for sentence in provider_complaints({"a": Wraps}))


def test_encode_batch_that_leaves_out_a_declared_field_is_an_error():
    class Encodes(Plugin[Nothing]):
        """Encodes nothing."""

        stage = Stage.LOAD

        @hookimpl
        def encode_batch(self, run, batch):
            return batch

    with pytest.raises(RuntimeError, match="left out fields that plugins declared: latents"):
        caller(base=Encodes).encode_batch(None, Batch(wanted=frozenset({"latents"})))


def test_two_runs_share_nothing():
    first, second = caller(base=Provider), caller(base=Provider)
    assert first.manager is not second.manager
    assert first.plugins[0] is not second.plugins[0]


class Encloses(Plugin[Nothing]):
    """Wraps the hooks that give nothing back."""

    stage = Stage.AVERAGE

    @hookimpl(wrapper=True)
    def on_step(self, run, step):
        TRACE.append("on_step before")
        yield
        TRACE.append("on_step after")

    @hookimpl(wrapper=True)
    def validate(self, run, report):
        TRACE.append("validate before")
        yield
        TRACE.append("validate after")

    @hookimpl(wrapper=True)
    def save_checkpoint(self, run, path):
        TRACE.append("save before")
        yield
        TRACE.append("save after")


def test_hooks_that_give_nothing_back_are_wrapped_without_a_return(tmp_path):
    hooks = caller(base=Provider, swap=Encloses)
    hooks.on_step(None, a_step())
    hooks.validate(None, Report(0))
    hooks.save_checkpoint(None, tmp_path)
    assert TRACE == ["on_step before", "base", "on_step after", "validate before", "validate after", "save before", "save after"]

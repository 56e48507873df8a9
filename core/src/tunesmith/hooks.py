"""The typed façade over pluggy: registering, calling, checking results, and naming whoever failed."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast, overload

import pluggy

from .hookspecs import GROUP, Hooks

if TYPE_CHECKING:
    from .batch import Batch
    from .events import Event
    from .loss import Loss
    from .media import Report
    from .model import Model
    from .plugin import Part, Plugin
    from .run import Run
    from .step import Step

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
Wrapper: TypeAlias = Generator[None, T, T]
"""What a wrapper returns: it yields once, is sent the inner result, and returns a result of the same type."""

PROVIDED = ("load_model", "encode_batch", "compute_loss")
"""Hooks with exactly one provider; everything else on them is a wrapper."""
LOG_FAILURES = 3
"""A plugin whose `log` failed so often is muted for the rest of the run."""

_mark = pluggy.HookimplMarker(GROUP)
_ATTRIBUTED = "_tunesmith_attributed"


@overload
def hookimpl(function: C) -> C: ...
@overload
def hookimpl(*, wrapper: bool = False) -> Callable[[C], C]: ...
def hookimpl(function: C | None = None, *, wrapper: bool = False) -> C | Callable[[C], C]:
    """Mark a plugin's method as a hook; `wrapper=True` for a generator that yields once around the inner call.

    Order is the core's business: pluggy's `tryfirst` and `trylast` are not offered.
    """

    def mark(method: C) -> C:
        guarded = _guard_wrapper(method) if wrapper and inspect.isgeneratorfunction(method) else _guard_plain(method)
        return cast(C, _mark(guarded, wrapper=wrapper, trylast=not wrapper))

    return mark if function is None else mark(function)


def _attribute(error: BaseException, plugin: Plugin[Any], hook: str) -> None:
    """Note on an error which plugin's hook raised it; the innermost one counts."""
    blame(error, plugin.name, hook)


def blame(error: BaseException, name: str, what: str, more: str = "") -> None:
    """Note on an error which part of which plugin it came out of, and what `more` says; the innermost one counts."""
    from .discovery import described  # which needs this module

    if not hasattr(error, _ATTRIBUTED):
        error.add_note(f"in {what} of {described(name)}{more}")
        setattr(error, _ATTRIBUTED, name)


@contextmanager
def blamed_on(name: str, what: str) -> Iterator[None]:
    """Note on an error that it came out of this part of this plugin, which is not a hook."""
    try:
        yield
    except Exception as error:
        blame(error, name, what)
        raise


@functools.cache
def _result_type(hook: str) -> type:
    """What the hooks with one provider give; imported late, for these modules need torch."""
    from .batch import Batch
    from .loss import Loss
    from .model import Model

    return {"load_model": Model, "encode_batch": Batch, "compute_loss": Loss}[hook]


def _require_type(result: object, plugin: Plugin[Any], hook: str) -> None:
    if hook in PROVIDED and not isinstance(result, _result_type(hook)):
        found = "nothing" if result is None else type(result).__name__
        error = TypeError(f"{hook} of plugin {plugin.name!r} returned {found}; it must return {_result_type(hook).__name__}")
        _attribute(error, plugin, hook)
        raise error


def _guard_plain(method: Callable[..., T]) -> Callable[..., T]:
    """Attribute errors of a method to its plugin, and check the type of what it returns."""

    @functools.wraps(method)
    def call(self: Plugin[Any], *args: Any, **kwargs: Any) -> T:
        try:
            result = method(self, *args, **kwargs)
        except Exception as error:
            _attribute(error, self, method.__name__)
            raise
        _require_type(result, self, method.__name__)
        return result

    return call


def _guard_wrapper(method: Callable[..., Wrapper[T]]) -> Callable[..., Wrapper[T]]:
    """Drive a wrapper by hand, so that its own errors are attributed and a dropped result is noticed."""

    @functools.wraps(method)
    def call(self: Plugin[Any], *args: Any, **kwargs: Any) -> Wrapper[T]:
        where = f"{type(self).__name__}.{method.__name__}"
        inner = method(self, *args, **kwargs)
        try:
            next(inner)
        except StopIteration:
            raise RuntimeError(f"{where} wraps {method.__name__} but did not yield") from None
        except Exception as error:
            _attribute(error, self, method.__name__)
            raise
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = yield
        except BaseException as error:  # handed to the wrapper below, which may answer it
            failure = error
        try:
            if failure is None:
                inner.send(result)  # type: ignore[arg-type]
            else:
                inner.throw(failure)
        except StopIteration as stop:
            if stop.value is None and method.__name__ in PROVIDED:
                dropped = RuntimeError(f"{where} wraps {method.__name__} but returns nothing, which drops the result: end with return")
                _attribute(dropped, self, method.__name__)
                raise dropped from None
            _require_type(stop.value, self, method.__name__)
            return stop.value  # type: ignore[no-any-return]
        except Exception as error:
            _attribute(error, self, method.__name__)
            raise
        raise RuntimeError(f"{where} yields twice; a wrapper yields once")

    return call


def _called(implementation: pluggy.HookImpl, **given: Any) -> Any:
    """What one implementation gives, of what it asks for."""
    return implementation.function(*(given[name] for name in implementation.argnames))


class HookCaller:
    """The hooks of one run: one manager, one instance of each plugin, every call checked.

    `plugins` come in their order, from the model outwards. Code before a `yield` runs from the outside in, everything
    else from the inside out.
    """

    def __init__(self, plugins: Iterable[Plugin[Any]]) -> None:
        self.plugins = tuple(plugins)
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(Hooks)
        self._log_failures: dict[str, int] = {}
        for plugin in self.plugins:  # LIFO: the last registered wrapper is the outermost
            self.manager.register(plugin, plugin.name)
        self.manager.check_pending()
        self._acts_on_steps = bool(self.manager.hook.on_step.get_hookimpls())
        objectives = self.manager.hook.compute_loss.get_hookimpls()
        self._lone_objective = objectives[0] if len(objectives) == 1 else None

    def load_model(self, run: Run, part: Part) -> Model:
        """Load one part of the model."""
        return cast("Model", self.manager.hook.load_model(run=run, part=part))

    def encode_batch(self, run: Run, batch: Batch) -> Batch:
        """Fill the fields that the batch wants; RuntimeError if one is still missing."""
        encoded = cast("Batch", self.manager.hook.encode_batch(run=run, batch=batch))
        missing = [key for key in sorted(batch.wanted) if key not in encoded.fields]
        if missing:
            raise RuntimeError(f"encode_batch left out fields that plugins declared: {', '.join(missing)}")
        return encoded

    def compute_loss(self, run: Run, step: Step) -> Loss:
        """The unreduced loss of a micro-batch."""
        if self._lone_objective is not None:  # there is nothing for pluggy to nest
            return cast("Loss", _called(self._lone_objective, run=run, step=step))
        return cast("Loss", self.manager.hook.compute_loss(run=run, step=step))

    def on_step(self, run: Run, step: Step) -> None:
        """Tell every plugin that an optimizer step is done."""
        if self._acts_on_steps:
            self.manager.hook.on_step(run=run, step=step)

    def validate(self, run: Run, report: Report) -> None:
        """Let every plugin add to the report."""
        self.manager.hook.validate(run=run, report=report)

    def save_checkpoint(self, run: Run, path: Path) -> None:
        """Let every plugin write its files below `path`."""
        self.manager.hook.save_checkpoint(run=run, path=path)

    def log(self, run: Run, event: Event) -> None:
        """Tell observers of an event one by one; a failure is warned of and mutes the plugin after three."""
        for implementation in self.manager.hook.log.get_hookimpls():
            name = implementation.plugin_name
            failures = self._log_failures.get(name, 0)
            if failures >= LOG_FAILURES:
                continue
            try:
                _called(implementation, run=run, event=event)
            except (Exception, SystemExit) as error:  # an observer never stops a run
                self._log_failures[name] = failures + 1
                muted = "; muted from now on" if failures + 1 == LOG_FAILURES else ""
                warnings.warn(f"plugin {name!r} could not log {event.kind!r}: {error}{muted}", stacklevel=2)

    def nesting(self, hook: str) -> list[tuple[str, str]]:
        """Who takes part in a hook, in the order of running: (plugin, "wrapper" or "provider" or "call")."""
        implementations = self.manager.hook.__getattribute__(hook).get_hookimpls()
        kind = "provider" if hook in PROVIDED else "call"
        return [(one.plugin_name, "wrapper" if one.wrapper else kind) for one in reversed(implementations)]

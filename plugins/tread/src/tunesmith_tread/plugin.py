"""The TREAD plugin: some tokens bypass some blocks while training, which saves their cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from tunesmith import Config, Family, Model, Part, Plugin, Run, Settings, Stage, Step, Wrapper, hookimpl

from .bypass import Routed, bypass
from .selection import choose, importance


class RouteSettings(Settings):
    """`[[plugins.tread.routes]]`: tokens that bypass some blocks."""

    ratio: float = Field(ge=0, lt=1)
    """Share of the tokens that bypass the blocks; 0 switches the route off."""
    start: int
    """First block that they bypass, counted from 0, or where negative from the end: -1 is the last."""
    end: int
    """Last block that they bypass, counted alike."""


class TreadSettings(Settings):
    """`[plugins.tread]`: which tokens bypass which blocks while training."""

    routes: tuple[RouteSettings, ...] = Field(min_length=1)
    """From the first blocks to the last; no block may be in two of them."""
    importance: float = Field(0.0, ge=0, le=1)
    """What tokens are kept by: 0 is chance, 1 the L1 norm of their hidden states, largest first, and between them both count."""


class Tread(Plugin[TreadSettings]):
    """Train some blocks on a part of the tokens, which the others bypass (TREAD, 2501.04765)."""

    stage = Stage.ROUTE

    def check(self, config: Config, family: Family) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Blocks that the family does not have, and routes that end before they start or meet."""
        place, blocks = ("plugins", self.name, "routes"), family.num_blocks
        known = f"{family.name} has blocks 0 to {blocks - 1}, or -{blocks} to -1 from the end"
        given = [(n, key, block) for n, one in enumerate(self.settings.routes) for key, block in (("start", one.start), ("end", one.end))]
        unknown = [((*place, n, key), f"routes[{n}].{key} = {block}: {known}") for n, key, block in given if not -blocks <= block < blocks]
        yield from unknown
        routes = {} if unknown else self._routes(family)
        for number, route in routes.items():
            if route.start > route.end:
                yield (*place, number, "start"), f"routes[{number}] starts at block {route.start}, behind its end, {route.end}; swap them"
        for before, (number, route) in zip(routes.values(), [*routes.items()][1:], strict=False):
            if route.start <= before.end:
                met = f"routes[{number}] starts at block {route.start}, and the one before it ends at block {before.end}"
                yield (*place, number, "start"), f"{met}: sort routes by their blocks, and let each start behind the end of the one before"

    def remarks(self, config: Config, family: Family) -> Iterator[str]:
        """What is left of the blocks' work."""
        routes = self._routes(family).values()
        saved = sum(route.ratio * (route.end - route.start + 1) for route in routes) / family.num_blocks
        told = " and ".join(f"{route.ratio:.0%} bypass blocks {route.start} to {route.end}" for route in routes) or "none bypass a block"
        yield f"of the tokens {told} while training: {1 - saved:.0%} of the blocks' work is left, counted by tokens"

    def narrows(self, family: Family) -> Iterable[range]:
        """The blocks of each route."""
        return [range(route.start, route.end + 1) for route in self._routes(family).values()]

    @hookimpl(wrapper=True)
    def load_model(self, run: Run, part: Part) -> Wrapper[Model]:
        """Put the routes into the trunk; where every ratio is 0 there is nothing to put."""
        model = yield
        if part is Part.DENOISER:
            trunk = model.trunk()
            blocks = [position for position, entry in enumerate(trunk) if entry.is_block]
            for route in self._routes(run.family).values():
                bypass(trunk[blocks[route.start] : blocks[route.end] + 1], partial(self._routed, run, route))
        return model

    def _routes(self, family: Family) -> dict[int, RouteSettings]:
        """The routes that are on by their number, with blocks counted from 0."""
        blocks, routes = family.num_blocks, enumerate(self.settings.routes)
        return {n: one.model_copy(update={"start": one.start % blocks, "end": one.end % blocks}) for n, one in routes if one.ratio}

    def _routed(self, run: Run, route: RouteSettings) -> Routed | None:
        """What the current step sends through a route, the same when blocks are computed again for backward; None outside of training."""
        step = run.current
        if step is None or step.mode != "train" or not torch.is_grad_enabled():
            return None
        routes: dict[str, Routed] = step.scratch[self.name]
        key = f"from block {route.start}"
        if key not in routes:
            routes[key] = Routed(run.model.token_grid(step.noisy), partial(self._choose, run, step, route))
        return routes[key]

    def _choose(self, run: Run, step: Step, route: RouteSettings, hidden: Tensor) -> Tensor:
        """The tokens [B, K] that go through, of hidden states [B, T, D] whose first tokens are those of the grid."""
        tokens = run.model.token_grid(step.noisy).tokens
        drawn = torch.rand((len(hidden), tokens), generator=run.torch_generator(self.name, step.position, route.start))
        score = (drawn.pin_memory() if hidden.is_cuda else drawn).to(hidden.device, non_blocking=True)
        if self.settings.importance:
            score = torch.lerp(score, importance(hidden[:, :tokens]), self.settings.importance)
        forced = None if run.is_rehearsal else step.keep  # how many there are is not known without values
        return choose(score, route.ratio, forced)

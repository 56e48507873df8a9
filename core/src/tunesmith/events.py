"""What a run tells the world, one event at a time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

EventKind: TypeAlias = Literal["start", "data", "step", "validation", "checkpoint", "warning", "end", "error"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a run: one JSON object, one line of `events.jsonl`."""

    kind: EventKind
    step: int
    data: Mapping[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def line(self) -> str:
        """The event as one line of JSON; numbers that JSON has no word for become text, such as "inf"."""
        content = {**self.data, "event": self.kind, "step": self.step, "time": self.time}
        return json.dumps(_plain(content), default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value

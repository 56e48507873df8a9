"""What a run tells the world, one event at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

EventKind: TypeAlias = Literal["start", "data", "cache", "step", "validation", "checkpoint", "warning", "end", "error"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a run: one JSON object, one line of `events.jsonl`."""

    kind: EventKind
    step: int
    data: Mapping[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def line(self) -> str:
        """The event as one line of JSON."""
        return json.dumps({"event": self.kind, "step": self.step, "time": self.time, **self.data}, default=str)

"""Who uses the entries of a cache: configs, each with the settings that were changed on the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Config


@dataclass(frozen=True, order=True)
class User:
    """A config file, and the overrides that it was run with."""

    config: Path
    overrides: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As the cache writes it down."""
        return json.dumps([str(self.config), *self.overrides])

    @property
    def exists(self) -> bool:
        """Whether the config file is there."""
        return self.config.is_file()

    def __str__(self) -> str:
        return " ".join([str(self.config), *(f"--set {override}" for override in self.overrides)])


def user_of(config: Config) -> str:
    """A run's config as the cache writes it down."""
    return User(config.path.resolve(), config.overrides).text


def read_user(text: str) -> User:
    """The user that was written down."""
    path, *overrides = json.loads(text)
    return User(Path(path), tuple(overrides))

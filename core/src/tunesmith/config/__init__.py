"""The config of a run: its tables, and reading and checking it."""

from .load import Config, load_config
from .problems import ConfigErrors, Problem
from .schema import schema

__all__ = ["Config", "ConfigErrors", "Problem", "load_config", "schema"]

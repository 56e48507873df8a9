"""CPU offload for Tunesmith: whole networks lie in the memory of the machine and visit the device one at a time."""

from .plugin import CpuOffload, CpuOffloadSettings

__all__ = ["CpuOffload", "CpuOffloadSettings"]

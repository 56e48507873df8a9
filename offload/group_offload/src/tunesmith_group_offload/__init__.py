"""Group offload for Tunesmith: blocks lie in the memory of the machine and visit the device for their work."""

from .plugin import GroupOffload, GroupOffloadSettings

__all__ = ["GroupOffload", "GroupOffloadSettings"]

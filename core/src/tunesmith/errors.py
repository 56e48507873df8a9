"""The errors that a user may see: each carries one clear message and the exit code of `tune`."""

from __future__ import annotations

import errno

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""A disk that cannot be written to, or no further."""


class TunesmithError(Exception):
    """A failure that is told to the user as a message, never as a traceback."""

    exit_code = 1


class InputError(TunesmithError):
    """What the user typed, named or pointed at is wrong; nothing was started. Exit code 2."""

    exit_code = 2


class RunFailed(TunesmithError):
    """The run was sound but could not go on. Exit code 1."""


class Stopped(TunesmithError):
    """The run was asked to end while no step was being taken; what it had encoded and saved is kept. Exit code 0."""

    exit_code = 0


class PartMissing(RunFailed):
    """A part of the model was asked for that is not loaded in this phase."""

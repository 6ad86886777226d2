"""What can go wrong, by type. Each message is one line: what, where, what to do.

`exit_code` is what a process ends with: 1 a gate refused, 2 bad input, 3 anything unforeseen.
"""

from __future__ import annotations

import errno
import os

REMEDIES = {  # of what the system refuses and a user can mend
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space, or ask for more, and run again",
    errno.EROFS: "make it writable and run again",
    errno.EACCES: "give your user the right to it and run again",
    errno.EPERM: "give your user the right to it and run again",
}


class StillhouseError(Exception):
    """The root of every error that a user can mend."""

    exit_code = 2


class ParamsError(StillhouseError):
    """`params.yaml` asks for something that does not exist or cannot be."""


class DataError(StillhouseError):
    """The raw snapshot, a table or a model file is not what it should be."""


class TeacherError(StillhouseError):
    """A teacher cannot be used: wrong format, classes, shape or weights."""


class GateError(StillhouseError):
    """Everything ran, and the answer is no."""

    exit_code = 1


def of_system(error: OSError) -> str | None:
    """The line for what the system refused and a user can mend; None for anything else.

    >>> of_system(OSError(errno.ENOSPC, "", "data/raw"))
    'data/raw: No space left on device; free some space and run again'
    """
    if error.errno not in REMEDIES:
        return None
    where = error.filename or "a file"
    return f"{where}: {os.strerror(error.errno)}; {REMEDIES[error.errno]}"

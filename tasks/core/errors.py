"""What can go wrong, by type. Each message is one line: what, where, what to do.

`exit_code` is what a process ends with: 1 a gate refused, 2 bad input, 3 anything unforeseen.
"""

from __future__ import annotations


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

"""One bad input: how a checkout is spoilt, what is typed, and what must be said.

A case is one entry of a list; its file says what kind it is. `cases.py` gathers the lists. Nothing
here runs or compares anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REMOVED = object()  # instead of a value: the key goes


@dataclass(frozen=True)
class Place:
    """How the command is begun (`prefix`), and where the test sees what the command sees."""

    root: Path
    prefix: tuple[str, ...] = ()


@contextmanager
def plainly(root: Path) -> Iterator[Place]:
    """Nothing special about the surroundings."""
    yield Place(root)


def untouched(root: Path) -> None:
    """The checkout is sound; what is typed is not."""


@dataclass(frozen=True)
class Case:
    """`wrong`: what the user did, for docs/errors.md. `says`: what, where, remedy, all in one line.

    `arrange` spoils a copy of a checkout in which everything has run; `around` holds while the
    command runs.
    """

    wrong: str
    arrange: Callable[[Path], object]
    says: tuple[str, ...]
    command: tuple[str, ...] = ("run",)
    code: int = 2
    around: Callable[[Path], AbstractContextManager[Place]] = plainly


def edited(content: dict[str, Any], values: Mapping[str, object]) -> dict[str, Any]:
    """`content` with dotted keys set, or removed."""
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        at = content
        for part in parents:
            at = at[part]
        if value is REMOVED:
            del at[last]
        else:
            at[last] = value
    return content


def params(values: Mapping[str, object]) -> Callable[[Path], None]:
    """Set dotted keys of params.yaml."""

    def arrange(root: Path) -> None:
        path = root / "params.yaml"
        content = edited(yaml.safe_load(path.read_text()), values)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    return arrange


def text(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Replace one passage of a text file."""

    def arrange(root: Path) -> None:
        content = (root / name).read_text()
        assert content.count(old) == 1, f"{name} holds {old!r} {content.count(old)} times"
        (root / name).write_text(content.replace(old, new))

    return arrange


def written(name: str, content: bytes) -> Callable[[Path], None]:
    """Write a file, over the one that is there."""

    def arrange(root: Path) -> None:
        (root / name).write_bytes(content)

    return arrange

"""Cores as slots, shared by every run of one user on the machine.

A training takes a slot for each of its threads: more threads than cores take far longer than one
training after the other. A stage that measures latency takes all, any other takes one. A slot is a
file lock, so it is free again when its holder dies, however it dies. Takers queue at one gate, in
turn; whoever holds a slot never needs the gate again, so nobody waits in a circle.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import threading
from bisect import insort
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from flows.state import Interrupted
from tasks.core.errors import DataError
from tasks.core.params import PARAMS, read

WHOLE_MACHINE = frozenset({"quantize", "judge"})  # measure latency
TRAINING = frozenset({"teach", "distill"})
POLL = 0.05  # seconds


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_folder() -> Path:
    """Where every run of this user on this machine finds the same slots."""
    return Path(tempfile.gettempdir()) / f"stillhouse-slots-{os.getuid()}"


def training_threads(root: Path) -> int:
    """`threads` of the `params.yaml` in `root`, which every command checks before it gets here."""
    return int(read(root / PARAMS)["threads"])


@contextmanager
def slots(
    group: str,
    threads: int,
    stop: threading.Event,
    folder: Path | None = None,
    count: int | None = None,
) -> Iterator[tuple[int, ...]]:
    """Wait for the slots that a stage of `group` needs and hold them; yields the descriptors.

    `threads` are those of a training; on a machine of fewer cores it takes all.

    A child that inherits the descriptors keeps the slots until it ends too. Raises `Interrupted`
    if `stop` is set while waiting.
    """
    place = folder or default_folder()
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    _own(place)
    paths = [place / f"slot-{i}" for i in range(count or cores())]
    held: list[int] = []
    try:
        with _locked(place / "gate", stop):
            for _ in range(_needed(group, threads, len(paths))):
                held.append(_wait(paths, stop))
        yield tuple(held)
    finally:
        for descriptor in held:
            os.close(descriptor)


def _own(place: Path) -> None:
    """Raise a `DataError` unless nobody else can put files or links into the folder `place`."""
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise DataError(f"{place}: not a folder of yours alone; remove it, or set TMPDIR to one")


def _needed(group: str, threads: int, count: int) -> int:
    if group in WHOLE_MACHINE:
        return count
    return min(threads, count) if group in TRAINING else 1


@dataclass(frozen=True)
class Turns:
    """Within one run, who asks for slots at the same time gets them in the order of their names.

    Branches that become ready together start in the same order every time: those that are `due`
    are waited for, but no longer than `patience` seconds, since one may never come.
    """

    patience: float = 5.0
    _waiting: list[str] = field(default_factory=list)
    _due: set[str] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def due(self, names: Iterable[str]) -> None:
        """`names` will ask at any moment now."""
        with self._changed:
            self._due.update(names)

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait until nobody before `name` is asking or due; ask within the block."""
        with self._changed:
            self._due.discard(name)
            insort(self._waiting, name)
            self._changed.notify_all()
            early = self._changed.wait_for(
                lambda: self._first() == name and not any(d < name for d in self._due),
                self.patience,
            )
            if not early:
                self._changed.wait_for(lambda: self._first() == name)
        try:
            yield
        finally:
            with self._changed:
                self._waiting.remove(name)
                self._changed.notify_all()

    def _first(self) -> str:
        return self._waiting[0]


@contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[None]:
    descriptor = _wait([path], stop)
    try:
        yield
    finally:
        os.close(descriptor)


def _wait(paths: list[Path], stop: threading.Event) -> int:
    """Lock the first of `paths` that comes free; returns its descriptor."""
    while True:
        for path in paths:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                os.utime(descriptor)  # so that nobody tidies it away as old while it is held
                return descriptor
        if stop.wait(POLL):
            raise Interrupted("interrupted while waiting for free cores")

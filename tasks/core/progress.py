"""Progress as plain lines: one a step at most every two seconds, and always the last.

The flow turns a stage's newest line into a live display; in a log each line stands for itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
EVERY = 2.0  # seconds between lines; display only, never part of a result


def tracked(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, printing `what 3/40` from time to time."""
    size = total if total is not None else len(items) if isinstance(items, Sized) else None
    last = 0.0
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= EVERY or count == size:
            last = now
            print(f"{what} {count}{f'/{size}' if size else ''}", flush=True)


class Pace:
    """A training's lines: `what: epoch 3/40 loss 0.41 val 0.931, 5,200 images/s, ETA 2 min`.

    Speed and time left are of this process from its start, validation included.
    """

    def __init__(self, what: str, epochs: int, steps: int, batch: int, done: int) -> None:
        """`steps` of `batch` rows an epoch; `done` of all of them by a process before this one."""
        self._what, self._epochs, self._steps, self._batch = what, epochs, steps, batch
        self._done = done
        self._began = self._last = time.monotonic()

    def step(self, epoch: int, step: int, loss: float) -> None:
        """After `step` steps of `epoch` (from 0), `loss` their mean: a line if one is due."""
        if time.monotonic() - self._last >= EVERY:
            self._say(epoch, step, f"step {step}/{self._steps} loss {loss:.4f}")

    def epoch(self, epoch: int, loss: float, accuracy: float) -> None:
        """After an epoch (from 0): always a line."""
        self._say(epoch, self._steps, f"loss {loss:.4f} val {accuracy:.4f}")

    def _say(self, epoch: int, step: int, figures: str) -> None:
        self._last = time.monotonic()
        done = epoch * self._steps + step
        rate = (done - self._done) / max(self._last - self._began, 1e-9)  # steps a second
        left = (self._epochs * self._steps - done) / max(rate, 1e-9)
        print(
            f"{self._what}: epoch {epoch + 1}/{self._epochs} {figures}, "
            f"{rate * self._batch:,.0f} images/s, ETA {_spoken(left)}",
            flush=True,
        )


def _spoken(seconds: float) -> str:
    """A time left, as one says it.

    >>> _spoken(12.4), _spoken(150), _spoken(5400)
    ('12 s', '2 min', '1.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

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

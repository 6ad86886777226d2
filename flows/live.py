"""Curves while a stage trains: its `history.jsonl` is tailed into an MLflow run of its own.

Runs in a thread beside the stage and never makes it fail or wait for long: a store that does not
answer is one warning line. The next projection (`flows/tracking.py`) makes the run a stage's child.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.outputs import curves, history_path
from flows.state import Checkout, one_line
from flows.store import KIND, STAGE, opened

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)

LIVE = "live"  # the kind of a run that tails a training
HISTORY = "stillhouse.history"  # SHA-256 of the curves that it holds
POLL = 0.5  # seconds between looks at a growing history
GRACE = 10.0  # seconds that a stage may wait for its last curves


@contextmanager
def live(checkout: Checkout, stage_name: str) -> Iterator[None]:
    """While the block runs `stage_name`, log its curves as they grow; stages without curves pass.

    The run ends as FINISHED, or as FAILED if the block raises.
    """
    path = history_path(stage_name)
    if path is None:
        yield
        return
    tail = _Tail(checkout, stage_name, checkout.root / path)
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        tail.finish(status)


class _Tail:
    """One training's curves on their way to MLflow."""

    def __init__(self, checkout: Checkout, stage: str, path: Path) -> None:
        self._checkout, self._stage, self._path = checkout, stage, path
        self._before = self._read()  # of the last training, until DVC clears it away
        self._sent = b""
        self._run: Run | None = None
        self._status, self._warned = "", False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"live {stage}", daemon=True)
        self._thread.start()

    def finish(self, status: str) -> None:
        """Send what is left and end the run, as long as that takes no longer than `GRACE`."""
        self._status = status
        self._over.set()
        self._thread.join(GRACE)
        if self._thread.is_alive():
            self._warn("MLflow does not answer in time; the curves follow with its projection")

    def _follow(self) -> None:
        try:
            while not self._over.wait(POLL):
                self._send()
            self._send()
            self._end()
        except Exception as error:  # whatever it is, the stage goes on
            self._warn(f"no live curves ({one_line(error)})")

    def _warn(self, what: str) -> None:
        """One line, whatever goes wrong after it."""
        if not self._warned:
            self._warned = True
            log.warning("%s: %s", self._stage, what)

    def _read(self) -> bytes:
        try:
            content = self._path.read_bytes()
        except OSError:
            return b""
        return content[: content.rfind(b"\n") + 1]

    def _send(self) -> None:
        """Log the lines that are new; another file than the one begun is not this training's."""
        content = self._read()
        stale = not self._sent and content == self._before
        if stale or content == self._sent or not content.startswith(self._sent):
            return
        with opened(self._checkout) as store:
            if self._run is None:
                self._run = store.begin(self._stage, {KIND: LIVE, STAGE: self._stage})
            new = curves(content[len(self._sent) :])
            points = [(name, value, epoch) for epoch, line in new for name, value in line.items()]
            store.log(self._run, points, at=int(time.time() * 1000))
        self._sent = content

    def _end(self) -> None:
        if self._run is not None:
            with opened(self._checkout) as store:
                store.log(self._run, tags={HISTORY: hashlib.sha256(self._sent).hexdigest()})
                store.client.set_terminated(self._run.info.run_id, self._status)

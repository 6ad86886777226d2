"""Stopping in order: a signal ends the stages that run, and the run still says how it ended.

The work is done in a thread, so that the main thread hears a signal at any moment.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from flows.runner import Runner

T = TypeVar("T")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def in_thread(work: Callable[[], T], runner: Runner) -> T:
    """Do `work` in a thread and wait for it; ends its stages once `runner` is told to stop."""
    got: list[T] = []
    raised: list[BaseException] = []

    def caught() -> None:
        try:
            got.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=caught, name="run")
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        if runner.stopping.is_set():
            runner.stop()
    if raised:
        raise raised[0]
    return got[0]


@contextmanager
def interruptible() -> Iterator[None]:
    """Whatever asks the block to end (a closed terminal, say) ends it as Ctrl-C does, once: what it
    then tidies up is not cut short."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with first_heard(interrupt, signal.SIG_IGN):
        yield


@contextmanager
def stoppable(runner: Runner) -> Iterator[None]:
    """The first signal to stop ends the run in order; a second one ends it at once."""
    with first_heard(runner.stopping.set, signal.SIG_DFL):
        yield


@contextmanager
def first_heard(handler: Callable[[], None], then: signal.Handlers) -> Iterator[None]:
    """For the length of the block, the first signal to stop calls `handler`, and `then` becomes of
    any other. What is ignored already, as under nohup, stays so."""
    former = {number: signal.getsignal(number) for number in STOPPING}
    heard = [number for number, before in former.items() if before is not signal.SIG_IGN]

    def first(_: int, __: object) -> None:
        for number in heard:
            signal.signal(number, then)
        handler()

    for number in heard:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, former[number])

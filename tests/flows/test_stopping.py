"""What becomes of the signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from flows.stopping import STOPPING, interruptible, stoppable


class Told:
    """As much of a runner as hears that it shall stop."""

    def __init__(self) -> None:
        self.stopping = threading.Event()


def test_the_first_signal_stops_and_leaves_any_other_one_to_end_the_process() -> None:
    runner: Any = Told()
    former = [signal.getsignal(number) for number in STOPPING]
    with stoppable(runner):
        signal.raise_signal(signal.SIGTERM)
        assert runner.stopping.is_set()
        assert {signal.getsignal(number) for number in STOPPING} == {signal.SIG_DFL}

    assert [signal.getsignal(number) for number in STOPPING] == former


def test_what_is_to_be_tidied_up_hears_no_second_signal() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for number in STOPPING:
                signal.raise_signal(number)


@pytest.mark.parametrize("stop", ["run", "plan"])
def test_what_is_ignored_as_under_nohup_stops_nothing(stop: str) -> None:
    runner: Any = Told()
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable(runner) if stop == "run" else interruptible():
            signal.raise_signal(signal.SIGHUP)
        assert not runner.stopping.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)

"""Cores are slots, across processes and however their holders end."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.slots import Turns, slots
from flows.state import Interrupted
from tasks.core.errors import DataError

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, threading
from pathlib import Path
from flows.slots import Turns, slots
with slots(sys.argv[1], int(sys.argv[2]), threading.Event(), Path(sys.argv[3]), 2):
    print("held", flush=True)
    sys.stdin.readline()
"""
Hold = Callable[..., subprocess.Popen[str]]
Until = Callable[[Callable[[], object]], None]


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    """Start another process that takes the slots of a stage and keeps them until told."""

    def start(group: str, threads: int = 2) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, group, str(threads), str(tmp_path)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    return start


def held(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"


def released(process: subprocess.Popen[str]) -> None:
    process.communicate("go\n", timeout=30)


@pytest.mark.parametrize(
    ("group", "threads", "taken"),
    [("quantize", 1, 3), ("judge", 1, 3), ("teach", 1, 1), ("distill", 2, 2), ("teach", 9, 3),
     ("stress", 2, 1), ("evaluate", 2, 1)],
)  # fmt: skip
def test_a_training_takes_a_slot_a_thread_and_a_latency_the_whole_machine(
    group: str, threads: int, taken: int, tmp_path: Path
) -> None:
    with slots(group, threads, threading.Event(), tmp_path, 3) as descriptors:
        assert len(descriptors) == taken


def test_two_trainings_of_one_thread_run_side_by_side(hold: Hold) -> None:
    first, second = hold("distill", 1), hold("distill", 1)

    held(first)
    held(second)

    released(first)
    released(second)


def test_two_light_stages_of_different_processes_run_side_by_side(hold: Hold) -> None:
    first, second = hold("stress"), hold("stress")

    held(first)
    held(second)

    released(first)
    released(second)


def test_a_training_waits_for_every_slot(hold: Hold, tmp_path: Path) -> None:
    light = hold("stress")
    held(light)
    entered = threading.Event()

    def train() -> None:
        with slots("teach", 2, threading.Event(), tmp_path, 2):
            entered.set()

    thread = threading.Thread(target=train)
    thread.start()
    waited = not entered.wait(0.3)
    released(light)

    assert waited
    assert entered.wait(30)
    thread.join()


def locked(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_light_stage_does_not_overtake_a_training_that_waits(
    hold: Hold, tmp_path: Path, until: Until
) -> None:
    light = hold("stress")
    held(light)
    order: list[str] = []
    queued = threading.Event()

    def take(group: str, begin: threading.Event) -> None:
        begin.set()
        with slots(group, 2, threading.Event(), tmp_path, 2):
            order.append(group)

    training = threading.Thread(target=take, args=("teach", queued))
    training.start()
    queued.wait()
    until(lambda: locked(tmp_path / "gate"))
    late = threading.Thread(target=take, args=("validate", threading.Event()))
    late.start()
    late.join(0.3)
    released(light)
    training.join(30)
    late.join(30)

    assert order == ["teach", "validate"]


def test_slots_are_free_when_their_holder_is_killed(hold: Hold, tmp_path: Path) -> None:
    training = hold("teach")
    held(training)

    training.kill()
    training.wait()

    with slots("judge", 2, threading.Event(), tmp_path, 2) as descriptors:
        assert len(descriptors) == 2


def test_a_child_that_inherits_a_slot_keeps_it(tmp_path: Path) -> None:
    stop = threading.Event()
    with slots("teach", 2, stop, tmp_path, 1) as descriptors:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=descriptors
        )
    stop.set()

    with pytest.raises(Interrupted), slots("stress", 2, stop, tmp_path, 1):
        pass

    child.communicate(b"\n")
    with slots("stress", 2, stop, tmp_path, 1) as descriptors:
        assert len(descriptors) == 1


def test_a_slot_that_is_taken_is_as_new_to_whoever_tidies_old_files(tmp_path: Path) -> None:
    slot = tmp_path / "slot-0"
    slot.touch()
    os.utime(slot, (0, 0))
    with slots("distill", 1, threading.Event(), tmp_path, 1):
        assert slot.stat().st_mtime > 0


@pytest.mark.parametrize("spoilt", ["link", "link to nothing", "file", "open to all"])
def test_slots_that_somebody_else_may_have_planted_are_refused(tmp_path: Path, spoilt: str) -> None:
    place = tmp_path / "slots"
    if spoilt == "link":
        place.symlink_to(tmp_path)
    elif spoilt == "link to nothing":
        place.symlink_to(tmp_path / "nothing")
    elif spoilt == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)
    with (
        pytest.raises(DataError, match="not a folder of yours alone"),
        slots("stress", 1, threading.Event(), place, 1),
    ):
        pass


def test_who_waits_for_cores_can_be_stopped(hold: Hold, tmp_path: Path) -> None:
    training = hold("teach")
    held(training)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()

    with pytest.raises(Interrupted), slots("stress", 2, stop, tmp_path, 2):
        pass

    released(training)


def turns_of(turns: Turns, until: Until, *names: str) -> list[str]:
    """Threads that ask one after the other, each once the one before it asks or has had its turn;
    the order in which they got it."""
    got: list[str] = []

    def ask(name: str) -> None:
        with turns.turn(name):
            got.append(name)

    threads = []
    for name in names:
        threads.append(threading.Thread(target=ask, args=(name,)))
        threads[-1].start()
        until(lambda name=name: name in (*turns._waiting, *got))
    for thread in threads:
        thread.join(30)
    return got


def test_who_is_due_gets_its_turn_before_those_that_ask_earlier(until: Until) -> None:
    turns = Turns(patience=30)
    turns.due(["b", "a", "c"])

    assert turns_of(turns, until, "c", "b", "a") == ["a", "b", "c"]
    assert turns_of(turns, until, "c") == ["c"]  # nobody is due any more


def test_who_is_due_and_never_comes_is_not_waited_for_for_ever(until: Until) -> None:
    turns = Turns(patience=0.5)
    turns.due(["a"])

    assert turns_of(turns, until, "c", "b") == ["b", "c"]

"""One stage as a process of its own: `dvc repro --single-item STAGE`.

DVC decides whether the stage runs, comes back from its cache or is fresh already. Whatever ends a
stage early, its whole process group ends and its former outs are back.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flows.dag import Stage
from flows.recovery import (
    keep_lock,
    locked_outs,
    mend_lock,
    mend_lock_table,
    remove_scratch,
    restore,
    set_aside,
)
from flows.running import GRACE, MARK, end_group, forget, record_path, write_record
from flows.slots import Turns, slots, training_threads
from flows.state import Checkout, Interrupted
from tasks.core.errors import DataError, GateError, StillhouseError
from tasks.core.files import read_json

How = Literal["ran", "restored", "unchanged"]
UNCHANGED, RESTORED = "didn't change, skipping", "is cached - skipping run"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
CHATTER = re.compile(  # of DVC about git and remotes; the log keeps it
    r"(Running stage|> |Generating lock|Updating lock|To track the changes|\s*git add|"
    r"To enable auto staging|\s*dvc config core.autostage|Use `dvc push`)"
)


class StageError(StillhouseError):
    """A stage ended in a way that nobody foresaw."""

    exit_code = 3


@dataclass(frozen=True)
class Outcome:
    """How a stage was brought up to date, and how long that took (s, wall)."""

    stage: str
    how: How
    seconds: float


@dataclass(frozen=True)
class Runner:
    """Runs stages of one checkout; `stop` ends all that run, from any thread."""

    checkout: Checkout
    stopping: threading.Event = field(default_factory=threading.Event)
    turns: Turns = field(default_factory=Turns)
    _alive: set[int] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def run(self, stage: Stage, say: Callable[[str], None], began: Callable[[], None]) -> Outcome:
        """Wait for cores, call `began`, run `stage`; each line it prints goes to `say` and its log.

        Raises `GateError`, `DataError`, `StageError` or `Interrupted`, with the stage's message.
        """
        with ExitStack() as hold:
            with self.turns.turn(stage.name):
                held = hold.enter_context(
                    slots(stage.group, training_threads(self.checkout.root), self.stopping)
                )
            began()
            start = time.monotonic()
            outcome = self.checkout.running / f"{stage.name}.outcome"
            outcome.unlink(missing_ok=True)
            code, lines = self._watched(stage, outcome, held, say)
            if code == 0:
                forget(self.checkout, stage.name)
                keep_lock(self.checkout)
                return Outcome(stage.name, _how(lines), time.monotonic() - start)
            error = self._failure(stage, outcome, lines)
            aside = self._bring_back(stage)
            raise type(error)(f"{error}; what it wrote is in {aside}") if aside else error

    def stop(self) -> None:
        """End every stage that runs, and start none."""
        self.stopping.set()
        deadline = time.monotonic() + GRACE
        for pid in self._living():
            end_group(pid, signal.SIGTERM)
        while self._living() and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in self._living():
            end_group(pid, signal.SIGKILL)

    def _living(self) -> set[int]:
        with self._guard:
            return set(self._alive)

    def _watched(
        self, stage: Stage, outcome: Path, held: tuple[int, ...], say: Callable[[str], None]
    ) -> tuple[int, list[str]]:
        """Run DVC to its end; returns its exit code and all lines."""
        log = self.checkout.logs / f"{stage.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        write_record(self.checkout, stage.name, 0, stage.outs)  # before: DVC removes outs at once
        with self._guard:
            if self.stopping.is_set():
                forget(self.checkout, stage.name)
                raise Interrupted("interrupted before it began")
            process = self._popen(stage, outcome, held)
            self._alive.add(process.pid)
        lines = []
        try:
            write_record(self.checkout, stage.name, process.pid, stage.outs)
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            with log.open("w") as file, process.stdout:
                for raw in process.stdout:
                    line = ANSI.sub("", raw.rsplit("\r", 1)[-1].rstrip())
                    file.write(f"{line}\n")
                    file.flush()
                    if line:
                        lines.append(line)
                    if line and not CHATTER.match(line):
                        say(line)
            return process.wait(), lines
        finally:
            end_group(process.pid, signal.SIGKILL)  # whatever the stage left behind
            process.wait()
            with self._guard:
                self._alive.discard(process.pid)

    def _popen(self, stage: Stage, outcome: Path, held: tuple[int, ...]) -> subprocess.Popen[str]:
        own = {
            "STILLHOUSE_OUTCOME": str(outcome),
            MARK: str(record_path(self.checkout, stage.name)),
            "SHELL": "/bin/sh",  # DVC takes the user's shell, whatever that reads first
            "PYTHONUNBUFFERED": "1",
        }
        command = ["-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage.name]
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.checkout.root,
            env=self.checkout.environment() | own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=held,
        )

    def _failure(self, stage: Stage, outcome: Path, lines: list[str]) -> StillhouseError:
        """Why the stage failed, typed by the exit code that it wrote down."""
        if self.stopping.is_set():
            return Interrupted("interrupted; its former outs are back")
        log = (self.checkout.logs / f"{stage.name}.log").relative_to(self.checkout.root)
        if not outcome.is_file():
            said = [line for line in lines if line.startswith("ERROR: ")]
            return StageError(f"{said[0][7:] if said else 'ended without a word'}; see {log}")
        content = read_json(outcome)
        outcome.unlink()
        if content["code"] == 3:
            return StageError(f"{content['message']}; see {log}")
        types = {1: GateError, 2: DataError, 130: Interrupted}
        return types.get(content["code"], StageError)(content["message"])

    def _bring_back(self, stage: Stage) -> Path | None:
        """The former outs of a failed stage, as `dvc.lock` names them.

        Returns where what it wrote instead lies now, relative to the checkout; None if nowhere.
        """
        root = self.checkout.root
        mend_lock_table(root)
        mend_lock(self.checkout)
        remove_scratch(root, stage.outs)
        former = locked_outs(root, stage.name)
        aside = set_aside(self.checkout, stage.name, stage.outs) if former else None
        restore(root, former)
        forget(self.checkout, stage.name)
        return aside and aside.relative_to(root)


def _how(lines: list[str]) -> How:
    if any(UNCHANGED in line for line in lines):
        return "unchanged"
    return "restored" if any(RESTORED in line for line in lines) else "ran"

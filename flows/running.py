"""Who works in a checkout: the lock of the run, and a record of each process that it started.

A record outlives a run that was killed, so that the next one finds its orphans. A process is
known by a mark in its environment, never by a number alone: numbers are used again.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import psutil
from pydantic import ValidationError

from flows.state import Checkout
from tasks.core.errors import DataError
from tasks.core.files import write_json
from tasks.core.params import Section

MARK = "STILLHOUSE_RECORD"  # in the environment of every process that a run starts
MENDING = "mend"  # what holds a checkout for a moment before a command looks at it
PATIENCE, GLANCE = 20.0, 0.5  # seconds to wait for who mends, and for who looks whether it is held
GRACE = 3.0  # seconds between asking a process to end and ending it


class Record(Section):
    """`.stillhouse/running/NAME.json`: a stage or a server that has not been seen to end."""

    format: Literal["stillhouse/running/1"] = "stillhouse/running/1"
    name: str
    pid: int
    outs: tuple[str, ...]  # that the stage may have removed or half written
    since: str  # ISO time


def record_path(checkout: Checkout, name: str) -> Path:
    """Where the record of `name` lies; also the mark of its processes."""
    return checkout.running / f"{name}.json"


def write_record(checkout: Checkout, name: str, pid: int, outs: tuple[str, ...] = ()) -> None:
    """Remember that process `pid` runs `name`."""
    record = Record(name=name, pid=pid, outs=outs, since=datetime.now(UTC).isoformat())
    write_json(record_path(checkout, name), record.model_dump(mode="json"))


def forget(checkout: Checkout, name: str) -> None:
    """The processes of `name` have ended and its outs are whole."""
    record_path(checkout, name).unlink(missing_ok=True)


def records(checkout: Checkout) -> list[Record]:
    """All records, by name; one that was cut off in writing still names its stage."""
    found = []
    for path in sorted(checkout.running.glob("*.json")):
        try:
            found.append(Record.model_validate_json(path.read_text()))
        except (ValidationError, UnicodeDecodeError):
            found.append(Record(name=path.stem, pid=0, outs=(), since=""))
    return found


def orphans(checkout: Checkout, name: str) -> list[psutil.Process]:
    """Living processes that carry the mark of `name`."""
    mark = str(record_path(checkout, name))
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and lives(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or somebody else's
    return found


def end(processes: list[psutil.Process]) -> None:
    """Ask processes to end, then end them; returns when all are gone."""
    for send in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.Error):
                send(process)
        deadline = time.monotonic() + GRACE
        while processes and time.monotonic() < deadline:
            processes = [process for process in processes if lives(process)]
            time.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    """The process works still; one that waits to be reaped by its parent does not.

    While threads of a killed one are still ending, so do its locks.
    """
    try:
        dead = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        return bool(process.is_running() and not dead)
    except psutil.Error:
        return False


def end_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that `pid` leads, if any of it is left."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


@contextmanager
def hold(checkout: Checkout, doing: str = "run") -> Iterator[None]:
    """Be the one run in this checkout; a `DataError` says who is, if another one is alive.

    Who only looks, or mends before it looks, is done in a moment and waited for. A workspace that
    `stillhouse gc` removed meanwhile is left gone.
    """
    with _locked(checkout) as lock:
        workspace = checkout.root.parent == checkout.home / "runs"
        if workspace and doing != MENDING and _removed(checkout):
            raise DataError(f"{checkout.root}: `stillhouse gc` has just removed it; run again")
        lock.truncate(0)
        since = datetime.now(UTC).isoformat()
        lock.write(json.dumps({"pid": os.getpid(), "since": since, "doing": doing}))
        lock.flush()
        yield


def _locked(checkout: Checkout) -> TextIO:
    """`run.lock`, opened and locked. `stillhouse gc` may have removed it while it was waited for;
    then it is made anew."""
    path, begun = checkout.own / "run.lock", time.monotonic()
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                return lock
            lock.close()
        except BlockingIOError:
            lock.close()
            patience = PATIENCE if _held(checkout).get("doing") == MENDING else GLANCE
            if time.monotonic() > begun + patience:
                raise DataError(
                    f"{checkout.root}: another run works here ({_holder(checkout)}); "
                    "wait for it, or stop it with Ctrl-C where it runs"
                ) from None
        time.sleep(0.02)


def _removed(checkout: Checkout) -> bool:
    """Whether nothing but the lock, made anew, is left of a workspace; then that goes too."""
    if (checkout.root / ".git").exists():
        return False
    with suppress(OSError):  # more is left
        (checkout.own / "run.lock").unlink()
        checkout.own.rmdir()
        checkout.root.rmdir()
    return True


def busy(checkout: Checkout) -> str | None:
    """Who runs in this checkout at this moment, or None."""
    path = checkout.own / "run.lock"
    if not path.is_file():
        return None
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(checkout)
    return None


def _holder(checkout: Checkout) -> str:
    try:
        content = _held(checkout)
        return f"process {content['pid']} since {content['since'][:19]}"
    except (KeyError, TypeError):
        return "a process that has just started"


def _held(checkout: Checkout) -> dict[str, Any]:
    """What the last holder of the lock wrote into it; empty where it has not yet."""
    try:
        content = json.loads((checkout.own / "run.lock").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

"""Records of runs: when, where, at which commit, and what came of it; and the list of them.

Each run writes its record when it begins and completes it when it ends, however it ends; one that
was killed cannot, and its record says so by having no end and no living process. A record also
names the data and results that the run left in DVC's cache, so `stillhouse gc` keeps those as long
as the record. Nothing here decides about a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows import repository
from flows.outputs import lock_objects, read_lock
from flows.running import records
from flows.state import Checkout, Interrupted, one_line
from flows.store import is_gone, this_process
from tasks.core.errors import DataError, ParamsError, StillhouseError
from tasks.core.files import read_json, write_json
from tasks.core.params import Section, check

State = Literal["at work", "killed", "interrupted", "failed", "refused", "approved", "done"]


class Student(Section):
    """What a run came to for one student. `version` is that of `<name>-candidates`."""

    approved: bool = False
    refused_by: tuple[str, ...] = ()  # gates
    bundle: str | None = None
    version: int | None = None


class Run(Section):
    """`.stillhouse/runs/BEGAN-PID.json`. `workspace` is relative to the checkout, "." for itself;
    `objects`: path -> MD5 in DVC's cache of the data and results it left behind."""

    format: Literal["stillhouse/run/1"] = "stillhouse/run/1"
    workspace: str
    commit: str | None
    dirty: bool
    process: str
    began: AwareDatetime
    ended: AwareDatetime | None = None
    exit_code: int | None = None
    students: dict[str, Student] = Field(default_factory=dict)
    failures: dict[str, str] = Field(default_factory=dict)  # stage or step -> one line
    objects: dict[str, str] = Field(default_factory=dict)

    @property
    def working(self) -> bool:
        """Its process lives, or may live on another machine."""
        return self.ended is None and not is_gone(self.process)

    @property
    def state(self) -> State:
        """How it ended, in a word."""
        if self.ended is None:
            return "at work" if self.working else "killed"
        if self.exit_code == Interrupted.exit_code:
            return "interrupted"
        if self.failures or not self.students:
            return "failed" if self.exit_code else "done"
        return "approved" if all(s.approved for s in self.students.values()) else "refused"


@dataclass
class Story:
    """What a run says of itself while it goes on."""

    exit_code: int = 0
    students: dict[str, Student] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def version(self, student: str) -> int | None:
        """Of the candidates, if `student` is one of them."""
        return self.students[student].version if student in self.students else None

    def tell(self, student: str, **what: object) -> None:
        """Add to what is known of a student."""
        known = self.students.get(student, Student())
        self.students[student] = known.model_copy(update=what)


def folder(checkout: Checkout) -> Path:
    """Where the records of a checkout and of its workspaces lie."""
    return checkout.state / "runs"


@contextmanager
def recorded(checkout: Checkout) -> Iterator[Story]:
    """Record the run that is done in the block; what it tells is in the record at its end."""
    began = datetime.now(UTC)
    run = Run(
        workspace=checkout.root.relative_to(checkout.home).as_posix(),
        commit=repository.commit(checkout.root),
        dirty=repository.changes(checkout.root) != (),
        process=this_process(),
        began=began,
    )
    path = folder(checkout) / f"{began:%Y%m%dT%H%M%SZ}-{os.getpid()}.json"
    write_json(path, run.model_dump(mode="json"))
    story = Story()
    try:
        yield story
    except BaseException as error:
        story.exit_code = _code(error)
        story.failures.setdefault("run", one_line(error))
        raise
    finally:
        told = {
            "ended": datetime.now(UTC),
            "exit_code": story.exit_code,
            "students": story.students,
            "failures": {k: " ".join(text.split()) for k, text in story.failures.items()},
            "objects": _objects(checkout),
        }
        with suppress(OSError):  # a full disk: how the run itself ended is what must be said
            write_json(path, run.model_copy(update=told).model_dump(mode="json"))


def _code(error: BaseException) -> int:
    if isinstance(error, StillhouseError):
        return error.exit_code
    return Interrupted.exit_code if isinstance(error, KeyboardInterrupt) else 3


def _objects(checkout: Checkout) -> dict[str, str]:
    try:
        return lock_objects(read_lock(checkout.root))
    except DataError:
        return {}  # no stage has ever come to its end here


def read_runs(checkout: Checkout) -> dict[Path, Run]:
    """Every record by its file, newest first; a `DataError` names one that is none."""
    found = {}
    for path in folder(checkout).glob("[!.]*.json"):
        try:
            found[path] = check(Run, read_json(path), where=str(path))
        except ParamsError as error:
            raise DataError(f"{error}; move this file away") from None
    return dict(sorted(found.items(), key=lambda item: item[1].began, reverse=True))


def show_runs(console: Console, checkout: Checkout, as_json: bool) -> None:
    """Print the runs, newest first: a table for people, or the records for machines."""
    found = read_runs(checkout).values()
    if as_json:
        told = [
            run.model_dump(mode="json") | {"state": run.state, "outcome": outcome(checkout, run)}
            for run in found
        ]
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    if not found:
        console.print("no run yet; `stillhouse run` begins one", markup=False, highlight=False)
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("began (UTC)", "where", "commit", "took"):
        table.add_column(column, no_wrap=True)
    table.add_column("what came of it", overflow="fold")
    for run in found:
        commit = (run.commit or "none")[:8] + ("+" if run.dirty else "")
        began = f"{run.began.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
        table.add_row(began, run.workspace, commit, took(run), outcome(checkout, run))
    console.print(table, markup=False, highlight=False)


def took(run: Run) -> str:
    """How long a run took, or has taken so far; of a killed one nobody knows."""
    if run.ended is None and not run.working:
        return "?"
    return duration((run.ended or datetime.now(UTC)) - run.began)


def duration(time: timedelta) -> str:
    """A length of time in its two largest units.

    >>> duration(timedelta(seconds=4.2)), duration(timedelta(minutes=3, seconds=5))
    ('4 s', '3 min 05 s')
    >>> duration(timedelta(days=1, hours=2))
    '26 h 00 min'
    """
    minutes, seconds = divmod(round(time.total_seconds()), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def outcome(checkout: Checkout, run: Run) -> str:
    """What came of a run, in words."""
    if run.state == "at work":
        place = Checkout(checkout.home / run.workspace, checkout.home, checkout.servers)
        return f"at work: {', '.join(r.name for r in records(place) if r.outs) or 'between stages'}"
    if run.state in ("killed", "interrupted"):
        return run.state
    said = [f"failed: {stage}: {why}" for stage, why in run.failures.items()]
    return "; ".join([*said, *(_verdict(name, s) for name, s in run.students.items())]) or run.state


def _verdict(name: str, student: Student) -> str:
    if not student.approved:
        return f"refused: {name}: {', '.join(student.refused_by) or 'no verdict'}"
    version = "" if student.version is None else f" (version {student.version})"
    return f"approved: {name}{version}"

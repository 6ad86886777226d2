"""The flow of a Prefect deployment: each run is one `stillhouse run` in a workspace of its own.

Prefect imports this module by name, for a schedule or a worker; it imports no stage and decides
nothing: it prepares the workspace, waits, and says in a line how that ended.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.running import MARK, forget, hold, record_path, write_record
from flows.show import last_verdict
from flows.state import Checkout, find_checkout
from flows.workspace import pinned, prepare
from tasks.core.errors import GateError, StillhouseError

NAME = "firing"
SHOWN = 30  # last lines of the log that Prefect keeps


@dataclass(frozen=True)
class Ended:
    """How a run in a workspace ended, and what it said."""

    workspace: Checkout
    code: int
    lines: list[str]

    @property
    def reason(self) -> str:
        """What came of it, in a line."""
        errors = [line.removeprefix("error: ") for line in self.lines if line.startswith("error: ")]
        if errors:
            return "; ".join(errors)
        if self.code == GateError.exit_code:
            return "; ".join(self._refusals())
        if self.code:
            return f"`stillhouse run` ended with exit code {self.code}"
        done = [line for line in self.lines if line.startswith("registered: ")]
        return "; ".join(done) or "up to date, nothing to register"

    def _refusals(self) -> list[str]:
        """Every gate that said no, in its own words."""
        verdicts = {s: last_verdict(self.workspace, s) for s in self.workspace.shipped}
        return [
            f"refused: {student}: {gate.name}: {gate.why}"
            for student, verdict in verdicts.items()
            for gate in verdict.failed
        ]


@flow(name="retrain", persist_result=False)
def retrain(commit: str = "HEAD") -> State[None]:
    """Take the data of the day and bring a workspace at `commit` up to date.

    The checkout is the one around the working directory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; whoever serves us says when
    logger = get_run_logger()
    try:
        ended = fire(find_checkout(), commit)
        reason = f"{ended.workspace.root.name}: {ended.reason}"
    except StillhouseError as error:
        logger.error("%s", error)
        return Failed(message=str(error))
    for line in ended.lines[-SHOWN:]:
        logger.info("%s", line)
    print(f"{reason} ({_now()})", flush=True)
    if ended.code:
        logger.error("%s", reason)
        return Failed(message=reason)
    return Completed(message=reason)


def fire(checkout: Checkout, commit: str) -> Ended:
    """One run in a new workspace; its output is in the workspace's `.stillhouse/logs/run.log`."""
    with hold(post(checkout)):
        full, name = pinned(checkout, commit)
        folder = prepare(checkout, f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}", None, full)
        print(f"{folder.name}: began, at commit {full[:12]} ({_now()})", flush=True)
        workspace = find_checkout(folder)
        log = workspace.logs / "run.log"
        code = _run(checkout, folder, log)
        return Ended(workspace, code, log.read_text(errors="replace").splitlines())


def post(checkout: Checkout) -> Checkout:
    """Where the run of a deployment is recorded: beside the checkout's own runs, not among them."""
    return replace(checkout, root=checkout.state / NAME)


def _run(checkout: Checkout, folder: Path, log: Path) -> int:
    """`stillhouse run` in `folder`, with its code; whatever ends us early ends it in order."""
    place = post(checkout)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run"],
            cwd=folder,
            env=checkout.environment() | {MARK: str(record_path(place, NAME))},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        write_record(place, NAME, process.pid)
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # once: a second signal would end it without bringing outs back
            process.wait()
        forget(place, NAME)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

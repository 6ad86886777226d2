"""`stillhouse plan`: is an assistant worth it? Three chains to one student at equal compute.

They are trained in a process of its own that holds a training's slots, and an interrupted
comparison goes on where it stopped. Shows the report; `tasks.distill.compare` makes it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.cache import in_use
from flows.dag import read_graph
from flows.runner import StageError
from flows.running import MARK, end_group, forget, hold, record_path, write_record
from flows.slots import slots, training_threads
from flows.state import Checkout, Interrupted
from flows.stopping import interruptible
from tasks.core.errors import DataError, GateError, ParamsError, StillhouseError
from tasks.core.files import read_json
from tasks.core.params import check

if TYPE_CHECKING:
    from tasks.distill.decision import PlanReport

NAME = "plan"
TEACHER = Path("models/teacher")


def compare(checkout: Checkout, seeds: int) -> PlanReport:
    """Train direct, assistant and dense chain with so many seeds; each line of theirs is printed.

    A `DataError` says what to run where there is no teacher of today's data and parameters.
    """
    from flows.params import check_params

    if seeds < 2:
        raise ParamsError(f"--seeds {seeds}: one seed knows no spread; give 2 or more")
    with hold(checkout), in_use(checkout), interruptible():
        check_params(checkout.root)
        _require_teacher(checkout)
        print(f"plan: {seeds} seeds of each chain; begins once no run holds the cores", flush=True)
        command = ["-m", "tasks.distill.compare", str(seeds)]
        with closing(_lines(checkout, command)) as lines:
            for line in lines:
                print(line, flush=True)
    return read_report(checkout.root)


def read_report(root: Path) -> PlanReport:
    """`reports/plan.json`."""
    from tasks.distill.decision import REPORT, PlanReport

    return check(PlanReport, read_json(root / REPORT), where=str(REPORT))


def show_plan(console: Console, report: PlanReport) -> None:
    """The chains as a table, and what is recommended in a sentence."""
    table = Table(box=SIMPLE_HEAD)
    for column in ("chain", "parameters", "epochs", "M FLOPs a row", "accuracy %", "gain, points"):
        table.add_column(column, justify="left" if column == "chain" else "right")
    for chain in report.chains:
        epochs = [chain.rungs[link].training.epochs for link in chain.links]
        spread = f"[{100 * min(chain.accuracy):.2f}, {100 * max(chain.accuracy):.2f}]"
        gain = chain.gain and (
            f"{100 * chain.gain.value:+.2f} "
            f"[{100 * chain.gain.low:+.2f}, {100 * chain.gain.high:+.2f}]"
        )
        table.add_row(
            chain.name,
            " > ".join(f"{count:,}" for count in chain.parameters),
            " + ".join(map(str, epochs)),
            f"{chain.flops / 1e6:,.1f}",
            f"{100 * chain.mean:.2f} {spread}",
            gain or "",
        )
    console.print(table)
    for line in (report.method, f"recommended: {report.why}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _require_teacher(checkout: Checkout) -> None:
    """There is a teacher of today's data and parameters, and a stage has banked its logits."""
    if not (checkout.root / TEACHER / "bank" / "bank.json").is_file():
        raise DataError(
            f"{TEACHER}: no teacher with a bank yet, and every chain learns from it; "
            "type `stillhouse run` first"
        )
    why = read_graph(checkout.root).stale.get("teach")
    if why:
        raise DataError(
            f"{TEACHER}: is not of today's data and parameters ({'; '.join(why)}); "
            "type `stillhouse run` first"
        )


def _lines(checkout: Checkout, arguments: list[str]) -> Generator[str, None, None]:
    """The lines of `python ARGUMENTS`, in a process that holds a training's slots and ends with
    us; raises the error that it ended with."""
    outcome = checkout.running / f"{NAME}.outcome"
    outcome.unlink(missing_ok=True)
    own = {
        "STILLHOUSE_OUTCOME": str(outcome),
        MARK: str(record_path(checkout, NAME)),
        "PYTHONUNBUFFERED": "1",
    }
    with slots("distill", training_threads(checkout.root), threading.Event()) as held:
        write_record(checkout, NAME, 0)
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=checkout.root,
            env=checkout.environment() | own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=held,
        )
        try:
            write_record(checkout, NAME, process.pid)
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            with process.stdout:
                yield from (line.rstrip() for line in process.stdout)
            process.wait()
        finally:
            end_group(process.pid, signal.SIGKILL)  # whatever it left behind
            process.wait()
            forget(checkout, NAME)
    if process.returncode:
        said: dict[str, Any] = (
            read_json(outcome)
            if outcome.is_file()
            else {"code": 3, "message": f"{NAME}: ended without a word"}
        )
        outcome.unlink(missing_ok=True)
        kinds: dict[int, type[StillhouseError]] = {1: GateError, 2: DataError, 130: Interrupted}
        raise kinds.get(said["code"], StageError)(said["message"])

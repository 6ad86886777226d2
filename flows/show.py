"""The last verdict for people: the chain as a table, the gates that refused, what to type next.

Reads what the judge and the stress families wrote; decides nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.seal import latest
from flows.state import Checkout
from tasks.core.errors import DataError
from tasks.judge.stress import Condition, conditions, hear
from tasks.judge.verdict import Link, MeasuredCosts, Rate, Verdict, read_verdict

STRESSED = {"corruptions": "corrupted", "adversarial": "attacked"}  # family -> column


def verdict_path(checkout: Checkout, student: str) -> Path:
    """Where the judge writes."""
    return checkout.root / "reports" / student / "verdict.json"


def last_verdict(checkout: Checkout, student: str) -> Verdict:
    """The verdict on `student`; a `DataError` says what to run if there is none."""
    path = verdict_path(checkout, student)
    if not path.is_file():
        raise DataError(f"{path.relative_to(checkout.root)}: no verdict yet; run `stillhouse run`")
    return read_verdict(path)


def show(console: Console, checkout: Checkout, student: str, version: int | None = None) -> Verdict:
    """Print table, headline, verdict, failed gates and next commands.

    `version`: of the candidates, where it was just registered.
    """
    verdict = last_verdict(checkout, student)
    console.print(chain_table(verdict, stressed(checkout, verdict)))
    for line in headline(verdict):
        _plain(console, line)
    count = len(verdict.gates) + len(verdict.measured.gates if verdict.measured else ())
    if verdict.approved:
        console.print(f"[bold green]approved[/bold green]: {student} passed all {count} gates")
    else:
        refused = len(verdict.failed)
        console.print(f"[bold red]refused[/bold red]: {student} failed {refused} of {count} gates")
    for gate in verdict.failed:
        _plain(console, f"  {gate.name}: {gate.why}")
    _plain(console, "next:")
    for command, purpose in next_commands(checkout, student, verdict, version):
        _plain(console, f"  {command}  # {purpose}")
    return verdict


def headline(verdict: Verdict) -> Iterator[str]:
    """What the student is, in a sentence; where it is weaker; what it cost; where it lies."""
    speed = ""
    if verdict.measured is not None:
        times = verdict.measured.latency_ms
        speed = f", {times.teacher / times.student:.0f}× faster"
    yield (
        f"{verdict.compression:.0f}× fewer parameters, {verdict.compression_bytes:.0f}× smaller"
        f"{speed}; keeps {100 * verdict.retention:.1f} % of the teacher's accuracy and is no worse "
        f"by more than {100 * verdict.loss_upper:.1f} points, with "
        f"{100 * verdict.confidence:.0f} % confidence"
    )
    if verdict.weaker:
        worst = sorted(verdict.weaker, key=lambda w: -w.loss)[:3]
        said = ", ".join(f"{w.where} (-{100 * w.loss:.0f} points)" for w in worst)
        yield f"weaker than its teacher: {said}"
    if verdict.measured is not None and verdict.measured.costs is not None:
        yield f"training cost: {_training(verdict.measured.costs)}"
    yield f"file: {verdict.student.path}"


def _training(costs: MeasuredCosts) -> str:
    """What was spent below the teacher, and when it is paid back."""
    spent = costs.below_teacher
    if spent.cpu_seconds is None or spent.watt_hours is None:
        return "unknown below the teacher; a stage noted no CPU-seconds"
    return (
        f"{spent.cpu_seconds:,.0f} CPU-seconds ({spent.watt_hours:.2g} Wh) below the teacher, "
        f"{costs.break_even.why}"
    )


def chain_table(verdict: Verdict, left: dict[str, tuple[str, ...]]) -> Table:
    """Teacher → rungs → student; `left` is what stress leaves of a link's accuracy, by role."""
    title = f"{verdict.student.name} ({verdict.rows} test rows)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("model", no_wrap=True)
    table.add_column("accuracy, %", min_width=12)
    for column in ("parameters", "FLOPs", "bytes", "ms", *(f"{w},\n%" for w in STRESSED.values())):
        table.add_column(column, justify="right", no_wrap=True)
    latency = verdict.measured.latency_ms.model_dump() if verdict.measured else {}
    for link in verdict.chain:
        time = latency.get(link.role)
        table.add_row(
            _name(link),
            percent(link.accuracy) + ("" if link.split == "test" else " val"),
            f"{link.parameters:,}",
            "?" if link.flops is None else f"{link.flops / 1e6:.2f} M",
            f"{link.bytes:,}",
            "" if time is None else f"{time:.2f}",
            *left.get(link.role, ("",) * len(STRESSED)),
        )
    return table


def percent(rate: Rate) -> str:
    """A share with its interval.

    >>> percent(Rate(value=0.95, low=0.93, high=0.964))
    '95.0 [93.0, 96.4]'
    """
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _name(link: Link) -> str:
    return f"{link.name} (shipped)" if link.role == "student" else link.name


def stressed(checkout: Checkout, verdict: Verdict) -> dict[str, tuple[str, ...]]:
    """Mean accuracy of teacher and student under each kind of stress, by role."""
    told: dict[str, list[str]] = {"teacher": [], "student": []}
    for family in STRESSED:
        found = list(_conditions(checkout, verdict, family))
        for role in told:
            mean = 100 * fmean(getattr(c, role) for c in found) if found else None
            told[role].append("?" if mean is None else f"{mean:.1f}")
    return {role: tuple(parts) for role, parts in told.items()}


def _conditions(checkout: Checkout, verdict: Verdict, family: str) -> Iterator[Condition]:
    student = verdict.student
    folder = checkout.root / "reports" / student.name / "stress"
    report = hear(folder, student.name, family, student.sha256)
    if not isinstance(report, str):
        yield from conditions(report)


def next_commands(
    checkout: Checkout, student: str, verdict: Verdict, version: int | None = None
) -> Iterator[tuple[str, str]]:
    """What to type next, and what for."""
    card = checkout.root / "reports" / student / "card.md"
    yield f"less {short(card)}", "the model card"
    bundle = latest(checkout, student)
    if bundle is not None:
        yield f"{program('stillhouse')} verify {short(bundle)}", "the sealed evidence is whole"
    if version is not None:
        yield f"{program('stillhouse')} promote {version}", "make it the champion"
    if not verdict.approved:
        trial = f"{program('stillhouse')} run --set section.key=value"
        yield trial, "try another choice, in a workspace"
    if checkout.servers.mlflow is None:
        store = f"--backend-store-uri sqlite:///{short(checkout.state / 'mlflow.db')}"
        yield f"{program('mlflow')} ui {store}", "runs and curves"


def program(name: str) -> str:
    """How `name` is typed here: bare in an activated environment, else with its folder."""
    activated = os.environ.get("VIRTUAL_ENV") == sys.prefix
    return name if activated else short(Path(sys.executable).parent / name)


def short(path: Path) -> str:
    """`path` relative to the working directory if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _plain(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

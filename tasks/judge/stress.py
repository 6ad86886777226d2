"""What the stress families report about the shipped file, as far as the judge can believe it.

A report that is missing, broken, about another file or without gates becomes one failed gate; it is
never passed over. Families compare student and teacher in places that are named here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from tasks.core.errors import StillhouseError
from tasks.core.files import read_json
from tasks.core.params import check
from tasks.core.reports import Gate, Rate, StressReport, at_least

Heard = StressReport | str  # a report, or why there is none to believe


class Compared(BaseModel):
    """Accuracy of both under one condition."""

    teacher: Rate
    student: Rate


class Kind(BaseModel):
    """One corruption, mildest first."""

    severities: tuple[Compared, ...]


class Corruptions(BaseModel):
    """Of the results of `corruptions`: accuracy by kind and severity."""

    kinds: dict[str, Kind]


class Budget(Compared):
    """One budget of an attack: a share of the input range, or a length of images in 0..1."""

    epsilon: float
    norm: Literal["linf", "l2"] = "linf"


class Adversarial(BaseModel):
    """Of the results of `adversarial`: accuracy left at each budget."""

    epsilons: tuple[Budget, ...]


class Slice(Compared):
    """One found slice, in words, and how many rows it was tested on."""

    where: str
    rows: int


class Slices(BaseModel):
    """Of the results of `slices`: those that were found, and those of declared columns; classes are
    compared by the judge."""

    found: tuple[Slice, ...]
    subgroups: dict[str, tuple[Slice, ...]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """One stressed condition in words, and what is left of either accuracy."""

    where: str
    rows: int
    teacher: float
    student: float


def hear(folder: Path, student: str, family: str, sha256: str) -> Heard:
    """The report of `family` in `folder` on the shipped file `sha256`, or why it does not count."""
    path = folder / f"{family}.json"
    try:
        report = check(StressReport, read_json(path), where=str(path))
        if report.error is not None:
            return f"The family crashed: {report.error}"
        if (report.student, report.family, report.model_sha256) != (student, family, sha256):
            return "The report is about another file than the one that ships"
        list(conditions(report))
    except StillhouseError as error:
        return f"There is no report to believe: {error}"
    return report if report.gates else "The family reported no gate"


def stress_gates(family: str, heard: Heard) -> tuple[Gate, ...]:
    """A family's own gates under `stress.FAMILY.`, or one failed gate that says why."""
    name = f"stress.{family}"
    if isinstance(heard, str):
        return (at_least(name, None, 1, f"{heard}."),)
    return tuple(
        gate.model_copy(
            update={
                "name": f"{name}.{gate.name.removeprefix(f'{family}.')}",
                "passed": _sound(gate),
            }
        )
        for gate in heard.gates
    )


def conditions(report: StressReport) -> Iterator[Condition]:
    """Every condition under which a family compared student and teacher."""
    where = f"results of {report.family}"
    if report.family == "corruptions":
        for name, kind in check(Corruptions, report.results, where).kinds.items():
            for severity, at in enumerate(kind.severities, start=1):
                yield _condition(f"{name.replace('_', ' ')}, severity {severity}", report.rows, at)
    elif report.family == "adversarial":
        for budget in check(Adversarial, report.results, where).epsilons:
            share = f"{100 * budget.epsilon:.2g} % of the range"
            near = share if budget.norm == "linf" else f"L2 {budget.epsilon:g}"
            yield _condition(f"adversarial, {near}", report.rows, budget)
    elif report.family == "slices":
        slices = check(Slices, report.results, where)
        for found in (*slices.found, *(s for own in slices.subgroups.values() for s in own)):
            yield _condition(found.where, found.rows, found)


def _condition(where: str, rows: int, at: Compared) -> Condition:
    return Condition(where, rows, at.teacher.value, at.student.value)


def _sound(gate: Gate) -> bool:
    """Passed, with a value, and not against its own margin."""
    return gate.passed and gate.value is not None and (gate.margin is None or gate.margin >= 0)

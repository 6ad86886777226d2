"""What a student cost to make, beside what it saves in use, and when the one repays the other.

Told twice and never mixed: in floating-point operations, equal on every machine, and in CPU-seconds
and energy, which belong to one. What nobody knows stays None, never nought. Nothing is read and
nothing is timed here. What two students share counts in full for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from pydantic import JsonValue

from tasks.core.models import ModelSpec
from tasks.core.reports import RungReport
from tasks.judge.case import Case
from tasks.judge.params import Distillation, Quantization, Teaching
from tasks.judge.verdict import (
    BreakEven,
    Costs,
    Latency,
    MeasuredCosts,
    Spent,
    Use,
    Work,
)

BANK = "bank of teacher"
BELOW = "below the teacher"
OPERATIONS = (
    "Training counts three forward passes for each row and epoch (the backward pass takes about "
    "two of them), a bank one for each row and view; a rung includes its own bank. A live teacher "
    "is one pass more, an adversarial image two for each step of its search and three to learn "
    "from. All epochs that were asked for count, also those that an early stop saved. Validation, "
    "calibration and scoring are left out; an operation on int8 counts as one."
)
MEASURED = (
    "CPU-seconds of the making are those that the stages noted; a rung includes its own bank, "
    "quantization its whole search. A prediction is one row on one thread, each model in its own "
    "runtime, and takes its median latency in CPU-seconds. Energy is estimated, not read from a "
    "meter: CPU-seconds times {watts:g} W, which a busy core is taken to draw (`judge.watts`)."
)


@dataclass(frozen=True)
class Noted:
    """What one stage noted of itself in `measured/`; None where it noted nothing to believe."""

    cpu: JsonValue
    cpu_seconds: float | None
    bank_cpu_seconds: float | None


def trained_here(teacher: ModelSpec) -> bool:
    """A given teacher names no data of ours: what its training took is unknown."""
    return teacher.fingerprint is not None


def quantization(student: str) -> str:
    """The name of the last step; no rung can be called so."""
    return f"quantization of {student}"


def operations(
    case: Case, teaching: Teaching, distillation: Distillation, quantize: Quantization
) -> Costs:
    """The floating-point operations of making the student and of using it."""
    rows, views, teacher = case.train_rows, teaching.views.count, case.teacher_spec
    taught = teaching.passes if trained_here(teacher) else None
    transfer = case.data.transfer  # rows that all but the teacher's own training see
    every = rows + (transfer.rows if transfer else 0)
    below = [Work(name=BANK, flops=product(every, views, teacher.flops))]
    chain = (*case.rung.lineage, case.rung)
    for above, rung in pairwise(chain):
        recipe = distillation.rungs.get(rung.name)
        passes = recipe.passes + views if recipe else None
        spent = [product(every, passes, rung.flops)]
        if recipe and recipe.signal == "live":
            spent.append(product(every, recipe.training.epochs, above.flops))
        below.append(Work(name=rung.name, flops=_whole(added(spent))))
    if "qat" in quantize.schemes:
        tuned = product(3, every, quantize.qat.epochs, case.rung.flops)
        below.append(Work(name=quantization(case.student), flops=tuned))
    total = added(step.flops for step in below)
    return Costs(
        steps=(Work(name="teacher", flops=product(rows, taught, teacher.flops)), *below),
        below_teacher=Work(name=BELOW, flops=_whole(total)),
        teacher=teacher.flops,
        student=case.spec.flops,
        break_even=break_even(total, teacher.flops, case.spec.flops),
        method=OPERATIONS,
    )


def _whole(flops: float | None) -> int | None:
    return None if flops is None else int(flops)


def measured_costs(
    noted: Mapping[str, Noted],
    teacher: ModelSpec,
    rung: RungReport,
    latency: Latency,
    cpu: dict[str, JsonValue],
    watts: float,
) -> MeasuredCosts:
    """The same in CPU-seconds and energy. `noted`: by name of the file in `measured/`; `rung`: of
    the float student; `cpu`: where `latency` was measured."""
    first, last = noted["teacher"], noted[f"quantize-{rung.name}"]
    taught = first.cpu_seconds if trained_here(teacher) else None
    steps = [("teacher", first, taught), (BANK, first, first.bank_cpu_seconds)]
    for name in (*(above.name for above in rung.lineage[1:]), rung.name):
        found = noted[name]
        steps.append((name, found, added((found.cpu_seconds, found.bank_cpu_seconds))))
    steps.append((quantization(rung.name), last, last.cpu_seconds))
    total = added(seconds for _, _, seconds in steps[1:])
    repaid = break_even(total, latency.teacher / 1000, latency.student / 1000)
    return MeasuredCosts(
        steps=tuple(spent(name, seconds, watts) for name, _, seconds in steps),
        below_teacher=spent(BELOW, total, watts),
        per_1000_predictions={
            # A millisecond each is a CPU-second in a thousand.
            role: Use(cpu_seconds=ms, joules=ms * watts)
            for role, ms in latency.model_dump().items()
        },
        break_even=repaid,
        elsewhere=tuple(name for name, at, s in steps if s is not None and at.cpu != cpu),
        method=MEASURED.format(watts=watts),
    )


def spent(name: str, cpu_seconds: float | None, watts: float) -> Spent:
    """A step in CPU-seconds and in watt-hours."""
    hours = None if cpu_seconds is None else cpu_seconds * watts / 3600
    return Spent(name=name, cpu_seconds=cpu_seconds, watt_hours=hours)


def break_even(making: float | None, teacher: float | None, student: float | None) -> BreakEven:
    """After how many predictions `making` is saved; the others are costs of one, in its unit.

    >>> break_even(12345, 3, 1)
    BreakEven(predictions=6173, why='paid back after about 6,200 predictions')
    >>> break_even(100, 3, 3).why
    'never paid back, since the student is no cheaper to run than its teacher'
    """
    if making is None or teacher is None or student is None:
        return BreakEven(why="paid back at a time unknown, since a cost on the way is unknown")
    if student >= teacher:
        why = "never paid back, since the student is no cheaper to run than its teacher"
        return BreakEven(why=why)
    count = math.ceil(making / (teacher - student))
    why = f"paid back after about {float(f'{count:.2g}'):,.0f} predictions"
    return BreakEven(predictions=count, why=why)


def product(*factors: int | None) -> int | None:
    """The product; unknown if a factor is.

    >>> product(2, 3), product(2, None)
    (6, None)
    """
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None


def added(parts: Iterable[float | None]) -> float | None:
    """The sum; unknown if a part is.

    >>> added([1, 2]), added([1, None])
    (3, None)
    """
    listed = list(parts)
    known = [part for part in listed if part is not None]
    return sum(known) if len(known) == len(listed) else None

"""The card's section on costs: of making the student beside those of using it.

In floating-point operations always; in CPU-seconds and energy only where the verdict was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.judge.markdown import amount, table
from tasks.judge.verdict import Costs, Measured, MeasuredCosts, Runtime, Times, Verdict

ROLES = {"teacher": "teacher", "float_student": "float student", "student": "what ships"}


RUNNING = (
    "one thread", "bytes", "load, ms", "1 row, ms: p50 / p95", "64 rows, ms: p50 / p95",
    "rows a second", "memory, MB", "joules for 1,000",
)  # fmt: skip
RAN = (
    "Rows a second are those of batches of 64. Memory is what a process grows by at most that "
    "loads the model and answers 64 rows; its libraries are left out."
)


def costs(verdict: Verdict) -> str:
    """The section. The reproducible card says where the measured figures are instead."""
    if verdict.costs is None:
        return "## Costs\n\nNot told by the judge that wrote this verdict."
    counted = _counted(verdict.costs)
    if verdict.measured is not None and verdict.measured.costs is not None:
        return f"{counted}\n\n{_measured(verdict.measured, verdict.measured.costs)}"
    return (
        f"{counted}\n\nTime and energy belong to one machine: see "
        f"`reports/{verdict.student.name}/card.md`, or `measured` in a sealed `manifest.json`."
    )


def _counted(told: Costs) -> str:
    making = [
        (step.name, amount(None if step.flops is None else step.flops / 1e9))
        for step in (*told.steps, told.below_teacher)
    ]
    use = [("teacher", amount(told.teacher)), ("what ships", amount(told.student))]
    return (
        "## Costs\n\n"
        + table(("making", "GFLOPs"), making)
        + "\n\n"
        + table(("one prediction", "FLOPs"), use)
        + f"\n\nWhat lies below the teacher is {told.break_even.why}. {told.method}"
    )


def _use(measured: Measured, told: MeasuredCosts) -> str:
    """What a prediction takes, of each model."""
    joules = {role: amount(energy.joules) for role, energy in told.per_1000_predictions.items()}
    if not measured.runtime:  # an older verdict
        latency = measured.latency_ms.model_dump()
        rows = [(ROLES[role], amount(latency[role]), j) for role, j in joules.items()]
        return table(("prediction", "ms for one", "joules for 1,000"), rows)
    running = [
        (
            ROLES[role], f"{r.bytes:,}", amount(r.load_ms), _times(r.one), _times(r.many),
            f"{r.rows_per_second:,.0f}", amount(r.memory_mb), joules[role],
        )
        for role, r in measured.runtime.items()
    ]  # fmt: skip
    return f"{table(RUNNING, running)}\n\n{RAN}{_beside_float(measured.runtime)}"


def _beside_float(runtime: Mapping[str, Runtime]) -> str:
    """Whether quantization made the student faster, in words: a very small one may be slower."""
    floats, ships = runtime["float_student"], runtime["student"]
    one, many = (
        _time(a.p50 / b.p50) for a, b in ((ships.one, floats.one), (ships.many, floats.many))
    )
    return f" What ships takes {one} time than the float student for one row, {many} for 64."


def _time(ratio: float) -> str:
    """A ratio of times, as more or less.

    >>> _time(1.25), _time(0.6)
    ('25 % more', '40 % less')
    """
    return f"{100 * abs(ratio - 1):.0f} % {'more' if ratio > 1 else 'less'}"


def _times(times: Times) -> str:
    return f"{amount(times.p50)} / {amount(times.p95)}"


def _measured(measured: Measured, told: MeasuredCosts) -> str:
    making = [
        (step.name, amount(step.cpu_seconds), amount(step.watt_hours))
        for step in (*told.steps, told.below_teacher)
    ]
    names = ", ".join(told.elsewhere)
    mixed = f" Made on another CPU, so not quite comparable: {names}." if names else ""
    return (
        f"### Measured on {measured.cpu.get('model')}, {measured.cpu.get('cores')} cores\n\n"
        + table(("making", "CPU-seconds", "Wh"), making)
        + "\n\n"
        + _use(measured, told)
        + f"\n\nWhat lies below the teacher is {told.break_even.why}. {told.method}{mixed}"
    )

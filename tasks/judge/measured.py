"""What this machine measures: three models at work, and CPU-seconds spent on the way.

These figures are never reproducible. They stand under `measured` with the CPU they belong to; a
declared budget may veto a student by them, and nothing is ranked by them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.core.cost import cpu
from tasks.core.errors import DataError
from tasks.core.files import read_json
from tasks.core.models import ModelSpec
from tasks.core.reports import Gate, RungReport, at_most
from tasks.judge.costs import Noted, measured_costs
from tasks.judge.runtime import runtimes
from tasks.judge.verdict import Latency, Measured

MEASURED = Path("measured")


def measure(
    student: str,
    teacher: ModelSpec,
    rung: RungReport,
    images: NDArray[np.generic],
    budget_ms: float,
    watts: float,
) -> Measured:
    """Time teacher, float student and student on one thread; gate the student. `rung`: of the float
    student; `images`: raw rows (N, C, H, W); `watts`: what a busy core is taken to draw."""
    found = runtimes(student, teacher, images)
    latency = Latency(**{role: runtime.one.p50 for role, runtime in found.items()})
    here, above = cpu(), [rung.name for rung in rung.lineage[1:]]
    noted = read_noted(["teacher", *above, rung.name, f"quantize-{rung.name}"])
    return Measured(
        cpu=here,
        latency_ms=latency,
        cpu_seconds={
            name: found.cpu_seconds
            for name, found in noted.items()
            if found.cpu_seconds is not None
        },
        runtime=found,
        gates=(latency_gate(latency, budget_ms),),
        costs=measured_costs(noted, teacher, rung, latency, here, watts),
    )


def latency_gate(latency: Latency, budget_ms: float) -> Gate:
    """The student's median against its budget, and what quantization did to speed here."""
    change = latency.float_student / max(latency.student, 1e-6)
    speed = (
        f"{change:.1f} times as fast as its float version"
        if change >= 1
        else f"{1 / max(change, 1e-6):.1f} times as long as its float version takes"
    )
    return at_most(
        "latency_ms",
        latency.student,
        budget_ms,
        f"Median {latency.student:.3f} ms for one row on one thread, {speed}; "
        f"{budget_ms:g} ms are allowed.",
    )


def read_noted(names: list[str], folder: Path = MEASURED) -> dict[str, Noted]:
    """What each stage noted of itself; a figure that is missing or no number is None."""
    found = {}
    for name in names:
        try:
            content = read_json(folder / f"{name}.json")
        except DataError:
            content = None
        facts = content if isinstance(content, dict) else {}
        found[name] = Noted(
            facts.get("cpu"),
            _number(facts.get("cpu_seconds")),
            _number(facts.get("bank_cpu_seconds")),
        )
    return found


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None

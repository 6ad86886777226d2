"""What stages report to each other: rates, gates, rungs of the chain, stress reports.

A gate compares a bound, never a point, and says in a sentence what that means. A value that is
missing or not finite fails.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from tasks.core.params import Section

MAX_STEP = 10.0  # parameters of one link over the next: beyond it a rung is refused


class Rate(Section):
    """A share of rows with its one-sided Wilson bounds."""

    value: float
    low: float
    high: float


class Gate(Section):
    """One decision: `value` was compared with `bound`; `why` is a sentence for people."""

    name: str
    value: float | None
    bound: float
    passed: bool
    why: str
    margin: float | None = None


def at_least(name: str, value: float | None, bound: float, why: str) -> Gate:
    """A gate that passes when `value >= bound`.

    >>> at_least("accuracy", float("nan"), 0.9, "lower bound of accuracy").passed
    False
    """
    known = _finite(value)
    return Gate(
        name=name,
        value=known,
        bound=bound,
        passed=known is not None and known >= bound,
        why=why,
        margin=None if known is None else known - bound,
    )


def at_most(name: str, value: float | None, bound: float, why: str) -> Gate:
    """A gate that passes when `value <= bound`."""
    known = _finite(value)
    return Gate(
        name=name,
        value=known,
        bound=bound,
        passed=known is not None and known <= bound,
        why=why,
        margin=None if known is None else bound - known,
    )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


class RungReport(Section):
    """`models/RUNG/report.json`, on validation rows. `bytes` counts float32 weights, `flops` is for
    one row; `retention` and `compression` (parameters) are against the rung above."""

    format: Literal["stillhouse/rung/1"] = "stillhouse/rung/1"
    name: str
    learned_from: str | None
    parameters: int
    flops: int | None
    bytes: int
    val_accuracy: Rate
    retention: float | None
    compression: float | None
    lineage: tuple[RungReport, ...] = ()  # the rungs above, teacher first


class StressReport(Section):
    """`reports/STUDENT/stress/FAMILY.json`. A family that crashed has `error` and no gates."""

    format: Literal["stillhouse/stress/1"] = "stillhouse/stress/1"
    student: str
    family: str
    model_sha256: str
    rows: int
    results: dict[str, Any]
    gates: tuple[Gate, ...]
    error: str | None = None

    @property
    def passed(self) -> bool:
        """At least one gate, all of them passed, and no crash."""
        return self.error is None and bool(self.gates) and all(g.passed for g in self.gates)

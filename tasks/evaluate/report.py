"""The teacher against its target, on rows it never trained on.

The temperature is fitted on validation rows and applied to test rows; the gate reads the test rows'
accuracy, which nothing was chosen by.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.core.errors import DataError, GateError
from tasks.core.metrics import ece, fit_temperature, macro_f1, softmax
from tasks.core.params import Section
from tasks.core.reports import Rate
from tasks.core.statistics import wilson

SHARE = 0.95  # of the required accuracy: a teacher below it is refused


class SplitReport(Section):
    """Metrics of one split."""

    rows: int
    accuracy: Rate
    macro_f1: float
    ece: float
    ece_calibrated: float


class TeacherReport(Section):
    """`reports/teacher/report.json`."""

    format: str = "stillhouse/teacher-report/1"
    model_sha256: str
    fingerprint: str
    temperature: float
    val: SplitReport
    test: SplitReport
    requirement: float
    met: bool


def measured_split(
    logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float
) -> SplitReport:
    """All metrics of one split."""
    predicted = logits.argmax(axis=1)
    hits = int((predicted == labels).sum())
    low, high = wilson(hits, len(labels))
    return SplitReport(
        rows=len(labels),
        accuracy=Rate(value=hits / len(labels), low=low, high=high),
        macro_f1=macro_f1(predicted, labels, logits.shape[1]),
        ece=ece(softmax(logits), labels),
        ece_calibrated=ece(softmax(logits, temperature), labels),
    )


def evaluate(
    val: tuple[NDArray[np.float32], NDArray[np.int64]],
    test: tuple[NDArray[np.float32], NDArray[np.int64]],
    requirement: float,
    model_sha256: str,
    fingerprint: str,
) -> TeacherReport:
    """The report of a teacher's (logits, labels) on validation and test rows."""
    for split, (logits, _) in (("validation", val), ("test", test)):
        if lost := int((~np.isfinite(logits).all(axis=1)).sum()):
            raise DataError(
                f"teacher: answers {lost:,} of {len(logits):,} {split} rows with NaN or infinite "
                "logits; give a teacher that is sound on all of them"
            )
    temperature = fit_temperature(*val)
    tested = measured_split(*test, temperature)
    return TeacherReport(
        model_sha256=model_sha256,
        fingerprint=fingerprint,
        temperature=temperature,
        val=measured_split(*val, temperature),
        test=tested,
        requirement=requirement,
        met=tested.accuracy.value >= SHARE * requirement,
    )


def gate(report: TeacherReport) -> None:
    """Refuse a teacher that is far from its target: its students would inherit that."""
    if not report.met:
        value, low, high = (100 * v for v in report.test.accuracy.model_dump().values())
        raise GateError(
            f"teacher: test accuracy {value:.1f} % ({low:.1f}-{high:.1f}) is below {SHARE:.0%} of "
            f"requirements.teacher_accuracy ({100 * report.requirement:.1f} %); train a better "
            "teacher or lower the requirement"
        )

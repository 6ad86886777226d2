"""Calibration: can the student's confidence be believed, and used to refuse a row?

Confidence is the plain softmax of the final model's logits: what a consumer computes from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field

from tasks.core.metrics import brier, calibration_bins, ece, negative_log_likelihood, softmax
from tasks.core.params import Section
from tasks.core.reports import at_most
from tasks.core.seeds import derived
from tasks.core.statistics import bootstrap_upper
from tasks.stress.case import Case, Outcome

RUNS = 500  # of the bootstrap
Labels = NDArray[np.int64]


class Params(Section):
    """Upper bound of the expected calibration error."""

    ece: float = Field(ge=0, le=1)


def run(case: Case, params: Params) -> Outcome:
    """Measure student and teacher on all test rows; the gate is on the student."""
    labels = case.test.labels
    probabilities = softmax(case.student_logits)
    upper = bootstrap_upper(
        lambda index: ece(probabilities[index], labels[index]),
        labels,
        RUNS,
        derived(case.seed, "stress", "calibration"),
    )
    student = _measures(case.student_logits, labels)
    results = {
        "student": student | {"ece_upper": upper},
        "teacher": _measures(case.teacher_logits, labels),
        "reliability": calibration_bins(probabilities, labels),
        "summary": {name: student[name] for name in ("ece", "brier", "nll", "aurc")},
    }
    gate = at_most(
        "calibration.ece",
        upper,
        params.ece,
        f"The student's confidence is off by {student['ece']:.1%} on average; the upper 95 % bound "
        "(bootstrap within classes) is compared.",
    )
    return Outcome(len(labels), results, (gate,), _figure(case), {})


def _measures(logits: NDArray[np.float32], labels: Labels) -> dict[str, Any]:
    probabilities = softmax(logits)
    return {
        "ece": ece(probabilities, labels),
        "brier": brier(probabilities, labels),
        "nll": negative_log_likelihood(logits, labels),
        "aurc": float(risks(probabilities, labels).mean()),
    }


def risks(probabilities: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """Error rate (N,) among the 1, 2, ... N most confident rows; its mean is AURC.

    Selective risk against coverage (Geifman & El-Yaniv, 2017).

    >>> risks(np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.array([0, 1, 0])).round(2)
    array([0.  , 0.  , 0.33])
    """
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    wrong = (probabilities.argmax(axis=1) != labels)[order]
    return np.asarray(np.cumsum(wrong) / np.arange(1, len(labels) + 1))


def _figure(case: Case) -> Figure:
    """Reliability, and risk against coverage, of student and teacher."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    labels = case.test.labels
    coverage = np.arange(1, len(labels) + 1) / len(labels)
    for name, logits, colour, line, marker in (
        ("student", case.student_logits, "black", "-", "o"),
        ("teacher", case.teacher_logits, "0.45", "--", "s"),
    ):
        probabilities = softmax(logits)
        bins = calibration_bins(probabilities, labels)
        left.plot(
            [b["confidence"] for b in bins],
            [b["accuracy"] for b in bins],
            color=colour,
            linestyle=line,
            marker=marker,
            fillstyle="none",
            label=name,
        )
        right.plot(coverage, risks(probabilities, labels), color=colour, linestyle=line, label=name)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    right.set(xlabel="coverage (most confident rows first)", ylabel="error rate", ylim=(0, None))
    left.legend(frameon=False)
    right.legend(frameon=False)
    return figure

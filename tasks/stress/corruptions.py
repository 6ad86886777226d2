"""Common corruptions: how much accuracy the student loses where an image is damaged by accident.

All kinds of `tasks.modalities.vision.corruptions`, at severities 1 to `severities`, on the sampled
rows; student and teacher see the same images. The gate compares the mean over all corruptions, row
by row, because the corruptions of one row are no independent witnesses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field

from tasks.core.metrics import correct
from tasks.core.params import Section
from tasks.core.progress import tracked
from tasks.core.reports import at_most
from tasks.core.seeds import derived
from tasks.core.statistics import bootstrap_upper, tango_upper
from tasks.modalities.vision.corruptions import KINDS, SEVERITIES, corrupt
from tasks.stress.case import Case, Outcome, rate

RUNS = 2000  # of the bootstrap
Flags = NDArray[np.bool_]


class Params(Section):
    """Severities per kind; `margin` of mean corrupted accuracy against the teacher."""

    severities: int = Field(ge=1, le=SEVERITIES)
    margin: float = Field(ge=0, le=1)


def run(case: Case, params: Params) -> Outcome:
    """Corrupt the sampled rows in every way and score them with student and teacher."""
    rows = case.test.take(case.sample(case.budget.corrupted))
    shape = (len(KINDS), params.severities, len(rows))
    student, teacher = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for place, kind in enumerate(tracked(KINDS, "corruptions: kind")):
        for level in range(params.severities):
            images = corrupt(rows.images, rows.rows, kind, level + 1, case.data, case.seed)
            student[place, level] = correct(case.score(images), rows.labels)
            teacher[place, level] = correct(case.teacher(images), rows.labels)
    means = {"student": float(student.mean()), "teacher": float(teacher.mean())}
    error = relative_error(~student, ~teacher)
    lost = (teacher.astype(np.float64) - student).mean(axis=(0, 1))  # per row
    upper = bootstrap_upper(lost, rows.labels, RUNS, derived(case.seed, "stress", "corruptions"))
    upper = max(upper, tango_upper(0, 0, len(rows)))  # no fewer rows can prove more than this
    results = {
        "student": means["student"],
        "teacher": means["teacher"],
        "lost": float(lost.mean()),
        "mce": error,
        "kinds": {k: _line(student[i], teacher[i]) for i, k in enumerate(KINDS)},
        "summary": {"corrupted_accuracy": means["student"], "mce": error},
    }
    gate = at_most(
        "corruptions.mean",
        upper,
        params.margin,
        f"Over {len(KINDS)} kinds of damage at {params.severities} severities the student keeps "
        f"{means['student']:.1%} and the teacher {means['teacher']:.1%}; the upper 95 % bound of "
        "the loss (bootstrap by row) is compared.",
    )
    return Outcome(len(rows), results, (gate,), _figure(student, teacher), {})


def relative_error(student: Flags, teacher: Flags) -> float:
    """mCE: errors (kinds, severities, N) against the teacher's, averaged over kinds; 1 is equal.

    Hendrycks & Dietterich (2019), with half an error added to each, so that a kind on which the
    teacher makes none still counts.

    >>> errors = np.array([[[True, False]], [[True, True]]])
    >>> relative_error(errors, errors)
    1.0
    """
    ratio = (student.sum(axis=(1, 2)) + 0.5) / (teacher.sum(axis=(1, 2)) + 0.5)
    return float(ratio.mean())


def _line(student: Flags, teacher: Flags) -> dict[str, Any]:
    """One kind in the report: flags (severities, N)."""
    return {
        "severities": [
            {"student": rate(s), "teacher": rate(t)} for s, t in zip(student, teacher, strict=True)
        ],
        "relative_error": relative_error(~student[None], ~teacher[None]),
    }


def _figure(student: Flags, teacher: Flags) -> Figure:
    """Heat maps, kind by severity: the student's accuracy, and what it loses to the teacher."""
    figure = Figure(
        figsize=(3.6 + 1.1 * student.shape[1], 1.2 + 0.36 * len(KINDS)), layout="constrained"
    )
    left, right = figure.subplots(1, 2, sharey=True)
    lost = teacher.mean(axis=2) - student.mean(axis=2)
    for axes, values, title, low, high, form in (
        (left, student.mean(axis=2), "student's accuracy", 0.0, 1.0, "{:.2f}"),
        (right, -lost, "against the teacher", -0.3, 0.3, "{:+.2f}"),
    ):
        axes.imshow(values, cmap="gray", vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            light = (value - low) / (high - low) > 0.5
            axes.text(
                column,
                row,
                form.format(value),
                ha="center",
                va="center",
                fontsize=8,
                color="black" if light else "white",
            )
        axes.set_xticks(range(values.shape[1]), [str(s + 1) for s in range(values.shape[1])])
        axes.set(xlabel="severity", title=title)
    left.set_yticks(range(len(KINDS)), [kind.replace("_", " ") for kind in KINDS])
    return figure

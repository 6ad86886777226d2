"""Fidelity: how often, where and how far the final student departs from its teacher.

Every disagreement is kept with what the float student says, so that one can see which step lost the
row: distillation, if the float student departs already, or quantization, if only int8 does.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field

from tasks.core.metrics import kl
from tasks.core.params import Section
from tasks.core.reports import at_least
from tasks.core.statistics import wilson
from tasks.core.tables import Table
from tasks.modalities.vision.scorers import network_scorer
from tasks.stress.case import Case, Outcome, rate

Labels = NDArray[np.int64]


class Params(Section):
    """Lower bound of the agreement with the teacher."""

    agreement: float = Field(ge=0, le=1)


def run(case: Case, params: Params) -> Outcome:
    """Compare all test rows with the teacher's stored predictions."""
    labels = case.test.labels
    teacher, student = case.teacher_logits.argmax(axis=1), case.student_logits.argmax(axis=1)
    floats = network_scorer(case.float_network)(case.test.images).argmax(axis=1)
    agrees = teacher == student
    right = {"teacher": teacher == labels, "student": student == labels}
    distance = kl(case.teacher_logits, case.student_logits)
    classes = {
        name: rate(agrees[labels == index])
        for index, name in enumerate(case.data.classes)
        if bool((labels == index).any())
    }
    kept = _flips(case.test, teacher, student, floats)
    lost_by = kept["lost_by"].to_pylist()
    results = {
        "agreement": rate(agrees),
        "float_agreement": rate(teacher == floats),
        "int8_agreement_with_float": rate(student == floats),
        "negative_flips": int((right["teacher"] & ~right["student"]).sum()),
        "positive_flips": int((right["student"] & ~right["teacher"]).sum()),
        "lost_by": {step: lost_by.count(step) for step in ("distillation", "quantization")},
        "kl": {"mean": float(distance.mean()), "p95": float(np.percentile(distance, 95))},
        "classes": classes,
        "summary": {"agreement": float(agrees.mean()), "kl": float(distance.mean())},
    }
    n, same = len(labels), int(agrees.sum())
    gate = at_least(
        "fidelity.agreement",
        wilson(same, n)[0],
        params.agreement,
        f"Student and teacher answer alike on {same} of {n} test rows; the lower 95 % bound is "
        "compared.",
    )
    return Outcome(n, results, (gate,), _figure(classes, distance), {"flips": kept})


def _flips(table: Table, teacher: Labels, student: Labels, floats: Labels) -> pa.Table:
    """Rows where the student departs from the teacher: three predictions, and the step at fault."""
    index = np.flatnonzero(teacher != student)
    departs = floats[index] != teacher[index]
    columns = {
        "row": pa.array(table.rows[index].tolist(), pa.string()),
        "label": pa.array(table.labels[index], pa.int32()),
        "teacher": pa.array(teacher[index], pa.int32()),
        "student": pa.array(student[index], pa.int32()),
        "float_student": pa.array(floats[index], pa.int32()),
        "lost_by": pa.array(
            np.where(departs, "distillation", "quantization").tolist(), pa.string()
        ),
    }
    return pa.table(columns)


def _figure(classes: dict[str, dict[str, float]], distance: NDArray[np.float64]) -> Figure:
    """Agreement per class with intervals, and how the KL divergence is spread."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    value = np.array([c["value"] for c in classes.values()])
    error = [
        value - [c["low"] for c in classes.values()],
        [c["high"] for c in classes.values()] - value,
    ]
    places = np.arange(len(classes))
    left.errorbar(places, value, yerr=np.abs(error), fmt="ko", capsize=3)
    left.set_xticks(
        places, [str(name)[:12] for name in classes], rotation=90 if len(classes) > 12 else 0
    )
    left.set(
        xlabel="class",
        ylabel="agreement with the teacher",
        ylim=(min(0.5, float(value.min()) - 0.1), 1.02),
    )
    ordered = np.sort(distance)
    right.plot(np.maximum(ordered, 1e-9), np.arange(1, len(ordered) + 1) / len(ordered), "k-")
    right.set(
        xscale="log", xlabel="KL(teacher ‖ student), nats", ylabel="share of rows at most this"
    )
    return figure

"""Calibration: can the student's confidence be believed, and used to refuse a row?

Confidence is the plain softmax of the final model's logits: what a consumer computes from them. A
row may be refused because the answer is doubtful (selective risk) or because it is none of the data
(out of distribution): `ood` names kinds of strangers, made from the test rows, and those that
`data.strangers` gives are asked too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import logsumexp

from tasks.core.metrics import brier, calibration_bins, ece, negative_log_likelihood, softmax
from tasks.core.params import Section
from tasks.core.reports import Gate, at_least, at_most
from tasks.core.seeds import derived, generator
from tasks.core.statistics import bootstrap_upper, tango_upper
from tasks.modalities.vision.outliers import Kind, outliers
from tasks.stress.case import Case, Outcome, finite
from tasks.stress.separation import auc_bounds, passing

RUNS = 500  # of the bootstrap
GIVEN = "given"  # strangers that `data.strangers` brings
COVERAGES = (0.8, 0.9, 1.0)  # shares of the rows, most confident first
Labels = NDArray[np.int64]


class Params(Section):
    """`ece`: upper bound of the expected calibration error. `ood`: kinds of strangers to tell from
    the data; `ood_auroc`: lower bound of how well confidence does so, null to report it only."""

    ece: float = Field(ge=0, le=1)
    ood: tuple[Kind, ...] = ()
    ood_auroc: float | None = Field(default=None, ge=0.5, le=1)

    @model_validator(mode="after")
    def _of_something(self) -> Params:
        if len(set(self.ood)) != len(self.ood):
            raise ValueError("ood names a kind twice")
        if self.ood_auroc is not None and not self.ood:
            raise ValueError("ood_auroc needs a kind of strangers; name one in ood")
        return self


def run(case: Case, params: Params) -> Outcome:
    """Measure student and teacher on all test rows; the gates are on the student."""
    labels, logits = case.test.labels, finite(case.student_logits)
    probabilities = softmax(logits)
    upper = bootstrap_upper(
        lambda index: ece(probabilities[index], labels[index]),
        labels,
        RUNS,
        derived(case.seed, "stress", "calibration"),
    )
    upper = max(upper, tango_upper(0, 0, len(labels)))  # no fewer rows can prove more than this
    student = _measures(logits, labels)
    strangers = {kind: _told_apart(case, kind, images) for kind, images in _strangers(case, params)}
    results = {
        "student": student | {"ece_upper": upper},
        "teacher": _measures(case.teacher_logits, labels),
        "reliability": calibration_bins(probabilities, labels),
        "ood": strangers,
        "summary": {name: student[name] for name in ("ece", "brier", "nll", "aurc")}
        | {
            f"auroc_{kind}": found["confidence"]["auroc"]["value"]
            for kind, found in strangers.items()
        },
    }
    gates = [
        at_most(
            "calibration.ece",
            upper,
            params.ece,
            f"The student's confidence is off by {student['ece']:.1%} on average; the upper 95 % "
            "bound (bootstrap within classes) is compared.",
        )
    ]
    if params.ood_auroc is not None:
        gates.append(_ood_gate(strangers, params.ood_auroc))
    return Outcome(len(labels), results, tuple(gates), _figure(case), {})


def _measures(logits: NDArray[np.float32], labels: Labels) -> dict[str, Any]:
    probabilities = softmax(logits)
    risk = risks(probabilities, labels)
    return {
        "ece": ece(probabilities, labels),
        "brier": brier(probabilities, labels),
        "nll": negative_log_likelihood(logits, labels),
        "aurc": float(risk.mean()),
        "risk_at_coverage": {
            f"{share:g}": float(risk[math.ceil(share * len(risk)) - 1]) for share in COVERAGES
        },
    }


def _strangers(case: Case, params: Params) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Kinds of strangers and raw images of each: made from sampled rows, or given."""
    rows = case.test.images[case.sample(case.budget.corrupted)]
    for kind in params.ood:
        yield kind, outliers(kind, rows, case.data, generator(case.seed, "stress", "ood", kind))
    if len(case.strangers):
        order = generator(case.seed, "stress", "ood", GIVEN).permutation(len(case.strangers))
        yield GIVEN, case.strangers[np.sort(order[: case.budget.corrupted])]


def _told_apart(case: Case, kind: str, images: NDArray[np.generic]) -> dict[str, Any]:
    """How well two scores tell sampled test rows from strange `images`: AUROC and FPR95.

    The largest probability (Hendrycks & Gimpel, 2017), and the energy, which is the logarithm of
    the sum of exponentiated logits (Liu et al., 2020).
    """
    index = case.sample(case.budget.corrupted)
    own = case.student_logits[index]
    strange = case.score(images)
    scores = {
        "confidence": (softmax(strange).max(axis=1), softmax(own).max(axis=1)),
        "energy": (_energy(strange), _energy(own)),
    }
    seed = derived(case.seed, "stress", "ood", kind, "bootstrap")
    return {"rows": len(images)} | {
        name: {"auroc": auc_bounds(theirs, ours, seed), "fpr95": passing(theirs, ours, 0.95)}
        for name, (theirs, ours) in scores.items()
    }


def _energy(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(logsumexp(logits.astype(np.float64), axis=1))


def _ood_gate(strangers: dict[str, dict[str, Any]], bound: float) -> Gate:
    """On the kind that confidence tells worst from the data."""
    kind = min(strangers, key=lambda kind: strangers[kind]["confidence"]["auroc"]["low"])
    found = strangers[kind]["confidence"]
    return at_least(
        "calibration.ood_auroc",
        found["auroc"]["low"],
        bound,
        f"Confidence tells test rows from '{kind}' ones with AUROC {found['auroc']['value']:.3f} "
        f"(0.5 is chance); where 95 % of test rows are kept, {found['fpr95']:.1%} of the others "
        "are too. The lower 95 % bound is compared.",
    )


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

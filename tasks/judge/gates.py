"""The gates: each compares a bound with a requirement and says in one sentence what that means.

A figure that is missing or not finite fails its gate. Gates on measured figures are in `measured`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tasks.core.metrics import macro_f1
from tasks.core.reports import MAX_STEP, Gate, at_least, at_most
from tasks.core.statistics import paired_bootstrap_upper, tango_upper, wilson
from tasks.judge.case import Case, Scored
from tasks.judge.compare import pair, per_class, ruined, undecided
from tasks.judge.params import JudgeParams, Requirements
from tasks.judge.portability import portability
from tasks.judge.stress import Heard, stress_gates

# What a student must have stood to be smaller than MAX_STEP allows in one step
STRESSES = (
    "adversarial",
    "corruptions",
    "edge_cases",
    "fidelity",
    "slices",
    "calibration",
    "security",
)


def decide(case: Case, judge: JudgeParams, requirements: Requirements) -> tuple[Gate, ...]:
    """Every reproducible gate, absolute ones first."""
    stress = tuple(
        gate for family, heard in case.stress.items() for gate in stress_gates(family, heard)
    )
    return (
        accuracy(case, judge, requirements),
        size(case, requirements),
        non_inferior_to_teacher(case, judge),
        macro_f1_loss(case, judge),
        class_regression(case, judge),
        better_than_baseline(case, judge),
        compression_validated(case),
        teacher_requirement(case),
        data_validation(case),
        parity(case),
        portability(case.certificate),
        valid_rows(case),
        *stress,
    )


def accuracy(case: Case, judge: JudgeParams, requirements: Requirements) -> Gate:
    """The lower bound of test accuracy against the absolute requirement."""
    hits, n = int(case.shipped.right.sum()), len(case.test)
    low, _ = wilson(hits, n, judge.confidence)
    return at_least(
        "accuracy",
        low,
        requirements.accuracy,
        f"{hits:,} of {n:,} test rows are right: accuracy is {100 * low:.1f} % or more.",
    )


def size(case: Case, requirements: Requirements) -> Gate:
    """The shipped file against its budget."""
    count = case.file.stat().st_size
    return at_most(
        "bytes",
        count,
        requirements.bytes,
        f"The shipped file has {count:,} bytes; {requirements.bytes:,} are allowed.",
    )


def non_inferior_to_teacher(case: Case, judge: JudgeParams) -> Gate:
    """Tango's bound of the loss to the teacher against the margin."""
    counts = pair(case.teacher.right, case.shipped.right)
    upper = counts.upper(judge.confidence)
    finest = tango_upper(0, 0, counts.rows, judge.confidence)
    return at_most(
        "non_inferior_to_teacher",
        upper,
        judge.margin,
        f"Rows lost to the teacher: {counts.lost}, gained: {counts.gained} (p {counts.p:.2g}): "
        f"a loss of {100 * upper:.2f} points or less; with {counts.rows:,} rows nothing below "
        f"{100 * finest:.2f} can be shown of two equal models.",
    )


def macro_f1_loss(case: Case, judge: JudgeParams) -> Gate:
    """The bootstrap's bound of the loss in macro-F1: rare classes count as much as others."""
    labels, classes = case.test.labels, len(case.data.data.classes) + 1  # the last: no valid answer

    def of(model: Scored, index: NDArray[np.int64]) -> float:
        return macro_f1(model.predicted[index], labels[index], classes)

    upper = paired_bootstrap_upper(
        lambda i: of(case.teacher, i),
        lambda i: of(case.shipped, i),
        labels,
        judge.bootstrap,
        judge.seed,
        judge.confidence,
    )
    return at_most(
        "macro_f1",
        upper,
        judge.macro_f1_margin,
        f"Macro-F1 is at most {100 * upper:.2f} points below the teacher's "
        f"({judge.bootstrap:,} paired resamples by row, stratified by class).",
    )


def class_regression(case: Case, judge: JudgeParams) -> Gate:
    """No class is lost while the average looks well."""
    names = case.data.data.classes
    classes = per_class(case.teacher.right, case.shipped.right, case.test.labels, names)
    missing = sorted(set(names) - {c.name for c in classes})
    lost = ruined(classes, judge.class_margin, judge.confidence)
    few = undecided(classes, judge.class_margin, judge.confidence)
    rule = (
        f"more than {100 * judge.class_margin:.0f} points behind the teacher and significant "
        "(exact McNemar, Benjamini-Hochberg over classes)."
    )
    if missing:
        return at_most(
            "class_regression",
            None,
            0,
            f"There are no test rows of {', '.join(missing)}: nothing is known of them.",
        )
    named = "No class is" if not lost else f"Ruined: {', '.join(c.name for c in lost)};"
    unknown = ", ".join(f"{c.name} ({c.pair.lost} of {c.pair.rows} lost)" for c in few)
    why = f"{named} {rule}" + (f" Too few rows to tell: {unknown}." if few else "")
    return at_most("class_regression", len(lost) + len(few), 0, why)


def better_than_baseline(case: Case, judge: JudgeParams) -> Gate:
    """The cheap baseline must be worse beyond doubt: else nobody needs a network."""
    counts = pair(case.baseline.predicted == case.test.labels, case.shipped.right)
    upper = counts.upper(judge.confidence)
    return at_most(
        "better_than_baseline",
        upper,
        0,
        f"Rows that only logistic regression on raw values has right: {counts.lost}, only the "
        f"student: {counts.gained}; "
        + (
            f"the student is better by at least {-100 * upper:.2f} points."
            if upper <= 0
            else "it is not shown to be better than that."
        ),
    )


def compression_validated(case: Case) -> Gate:
    """No link shrinks by more than 10:1; overall more than that only if stress finds no harm."""
    rungs = [rung.parameters for rung in case.rung.lineage[1:]]
    sizes = [case.teacher_spec.parameters, *rungs, case.rung.parameters, case.spec.parameters]
    if not case.rung.lineage or min(sizes) <= 0:
        why = "A link of the chain is missing or has no parameters: nothing is known of its steps."
        return at_most("compression_validated", None, MAX_STEP, why)
    largest = max(a / b for a, b in pairwise(sizes))
    overall = sizes[0] / sizes[-1]
    gate = at_most(
        "compression_validated",
        largest,
        MAX_STEP,
        f"{overall:.1f}:1 in parameters overall, {largest:.1f}:1 in the largest step.",
    )
    if overall <= MAX_STEP:
        return gate
    missing = [family for family in STRESSES if family not in case.stress]
    failed = [family for family, heard in case.stress.items() if not _stood(family, heard)]
    said = [f"missing: {', '.join(missing)}"] if missing else []
    said += [f"not passed: {', '.join(failed)}"] if failed else []
    state = "; ".join(said) or "they passed"
    why = f"{gate.why} More than {MAX_STEP:.0f}:1 needs every stress family; {state}."
    return gate.model_copy(update={"passed": gate.passed and not said, "why": why})


def _stood(family: str, heard: Heard) -> bool:
    """The family has gates, and all of them passed."""
    found = stress_gates(family, heard)
    return bool(found) and all(gate.passed for gate in found)


def teacher_requirement(case: Case) -> Gate:
    """The teacher itself came near its target (`SHARE` in tasks/evaluate), on this data."""
    report = case.teacher_report or {}
    if report.get("model_sha256") != case.teacher_spec.sha256:
        return _holds("teacher_requirement", None, "There is no report on this teacher.")
    if report.get("fingerprint") != case.data.digest:
        return _holds("teacher_requirement", None, "The teacher was evaluated on other data.")
    met = report.get("met")
    said = "reaches" if met is True else "misses"
    why = f"The teacher {said} its own target, less 5 % of it, on test rows."
    return _holds("teacher_requirement", met, why)


def data_validation(case: Case) -> Gate:
    """No critical expectation failed."""
    return _holds(
        "data_validation",
        case.validation,
        {
            True: "The data passes every critical expectation.",
            False: "The data fails a critical expectation.",
            None: "There is no report on the data.",
        }[case.validation],
    )


def parity(case: Case) -> Gate:
    """The export and the fake-quant twin compute what they should."""
    return _holds(
        "parity",
        case.parity,
        {
            True: "The float export and the fake-quant twin agree with what they stand for.",
            False: "The float export or the fake-quant twin computes something else.",
            None: "There is no parity report.",
        }[case.parity],
    )


def valid_rows(case: Case) -> Gate:
    """The shipped file accepts every real row and answers it with finite logits."""
    refused = int((~case.shipped.valid).sum())
    return at_least(
        "valid_rows",
        float(case.shipped.valid.mean()),
        1,
        f"{refused:,} of {len(case.test):,} test rows are refused by the shipped file.",
    )


def _holds(name: str, truth: object, why: str) -> Gate:
    """A gate on a truth that someone stated; None is no statement and fails."""
    value = None if truth is None else float(truth is True)
    return at_least(name, value, 1, why)

"""From a case and its gates to the verdict: the chain of links, and where the student is weaker.

Pure arithmetic on what was read; nothing is decided here that a gate does not say.
"""

from __future__ import annotations

from typing import Any

from tasks.core.files import sha256
from tasks.core.reports import Gate, Rate
from tasks.core.statistics import tango_upper, wilson
from tasks.judge.case import Case, Scored
from tasks.judge.compare import pair, per_class
from tasks.judge.params import JudgeParams
from tasks.judge.stress import conditions
from tasks.judge.verdict import (
    Baseline,
    Costs,
    Link,
    Measured,
    ShippedStudent,
    Teacher,
    Verdict,
    Weakness,
)

SHOWN = 8  # weaknesses listed, worst first


def conclude(
    case: Case,
    judge: JudgeParams,
    gates: tuple[Gate, ...],
    costs: Costs | None,
    measured: Measured | None,
) -> Verdict:
    """The verdict: approved if every gate passed, measured ones included."""
    links = chain(case, judge.confidence)
    rows = len(case.test)
    to_baseline = pair(case.baseline.predicted == case.test.labels, case.shipped.right)
    size = case.file.stat().st_size
    everything = (*gates, *(measured.gates if measured else ()))
    return Verdict(
        approved=all(gate.passed for gate in everything),
        gates=gates,
        student=ShippedStudent(
            name=case.student,
            path=case.file.as_posix(),
            sha256=sha256(case.file),
            bytes=size,
            parameters=case.spec.parameters,
            flops=case.spec.flops,
        ),
        teacher=Teacher(
            sha256=case.teacher_spec.sha256,
            bytes=case.teacher_spec.bytes,
            parameters=case.teacher_spec.parameters,
        ),
        chain=links,
        baseline=Baseline(
            accuracy=rate(
                int((case.baseline.predicted == case.test.labels).sum()), rows, judge.confidence
            ),
            rows=case.baseline.rows,
            features=case.baseline.features,
            loss_upper=to_baseline.upper(judge.confidence),
        ),
        retention=links[-1].retention,
        compression=links[-1].compression,
        compression_bytes=ratio(case.teacher_spec.bytes, size),
        loss_upper=pair(case.teacher.right, case.shipped.right).upper(judge.confidence),
        margin_resolution=tango_upper(0, 0, rows, judge.confidence),
        confidence=judge.confidence,
        rows=rows,
        weaker=weaker(case),
        costs=costs,
        measured=measured,
    )


def chain(case: Case, confidence: float) -> tuple[Link, ...]:
    """Teacher, rungs between, float student, shipped student."""
    teacher, links = case.teacher_spec, list[Link]()
    reference = rate(int(case.teacher.right.sum()), len(case.test), confidence)

    def add(**facts: Any) -> None:
        above = links[-1].parameters if links else teacher.parameters
        links.append(
            Link(
                compression=ratio(teacher.parameters, facts["parameters"]),
                step=ratio(above, facts["parameters"]),
                **facts,
            )
        )

    def tested(scored: Scored) -> dict[str, Any]:
        got = rate(int(scored.right.sum()), len(case.test), confidence)
        return {"split": "test", "accuracy": got, "retention": ratio(got.value, reference.value)}

    add(
        name="teacher",
        role="teacher",
        parameters=teacher.parameters,
        flops=teacher.flops,
        bytes=teacher.bytes,
        **tested(case.teacher),
    )
    above = case.rung.lineage
    for rung in above[1:]:
        kept = ratio(rung.val_accuracy.value, above[0].val_accuracy.value)
        add(
            name=rung.name,
            role="rung",
            parameters=rung.parameters,
            flops=rung.flops,
            bytes=rung.bytes,
            split="val",
            accuracy=rung.val_accuracy,
            retention=kept,
        )
    add(
        name=f"{case.student} (float)",
        role="float_student",
        parameters=case.rung.parameters,
        flops=case.rung.flops,
        bytes=case.rung.bytes,
        **tested(case.float_student),
    )
    add(
        name=case.student,
        role="student",
        parameters=case.spec.parameters,
        flops=case.spec.flops,
        bytes=case.file.stat().st_size,
        **tested(case.shipped),
    )
    return tuple(links)


def weaker(case: Case) -> tuple[Weakness, ...]:
    """Classes, then stressed conditions, in which the student is behind its teacher."""
    classes = [
        Weakness(
            where=f"class {c.name}",
            rows=c.pair.rows,
            teacher=c.reference,
            student=c.candidate,
            loss=c.pair.loss,
            q=c.q,
        )
        for c in per_class(
            case.teacher.right, case.shipped.right, case.test.labels, case.data.data.classes
        )
        if c.pair.loss > 0
    ]
    stressed = [
        Weakness(
            where=at.where,
            rows=at.rows,
            teacher=at.teacher,
            student=at.student,
            loss=at.teacher - at.student,
        )
        for heard in case.stress.values()
        if not isinstance(heard, str)
        for at in conditions(heard)
        if at.teacher > at.student
    ]
    return tuple(
        found
        for group in (classes, stressed)
        for found in sorted(group, key=lambda w: (-w.loss, w.where))[:SHOWN]
    )


def rate(hits: int, rows: int, confidence: float) -> Rate:
    """A share with its bounds."""
    low, high = wilson(hits, rows, confidence)
    return Rate(value=hits / rows, low=low, high=high)


def ratio(above: float, below: float) -> float:
    """`above` per `below`; 0 where there is nothing to divide by."""
    return above / below if below else 0.0

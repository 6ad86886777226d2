"""`python -m tasks.judge STUDENT`: weigh everything known of one student and write the verdict.

A refused student ends the stage well: the verdict says so, and what follows from it is the flow's.
"""

from __future__ import annotations

from tasks.core.errors import ParamsError
from tasks.core.files import write_bytes, write_json, write_text
from tasks.core.params import read, section
from tasks.core.seeds import deterministic
from tasks.core.stage import main
from tasks.judge import summary
from tasks.judge.card import card
from tasks.judge.case import REPORTS, read_case
from tasks.judge.chain import conclude
from tasks.judge.costs import operations
from tasks.judge.evidence import EVIDENCE, write_evidence
from tasks.judge.gates import decide
from tasks.judge.measured import measure
from tasks.judge.params import (
    Distillation,
    Families,
    JudgeParams,
    Quantization,
    Requirements,
    Teaching,
)
from tasks.judge.portability import everywhere
from tasks.judge.runtime import BATCH
from tasks.judge.trial import attempt, with_trial
from tasks.judge.verdict import as_json


def run(arguments: list[str]) -> None:
    """Write `verdict.json`, `card.md` and `gates.png` of `reports/STUDENT/`, and its evidence."""
    if len(arguments) != 1:
        raise ParamsError("python -m tasks.judge STUDENT: needs exactly one student")
    (student,) = arguments
    distillation = section("distill", Distillation)
    if student not in distillation.ship:
        known = ", ".join(distillation.ship)
        raise ParamsError(f"judge: '{student}' is none of distill.ship ({known}); name one of them")
    judge, requirements = section("judge", JudgeParams), section("requirements", Requirements)
    teaching, quantize = section("teach", Teaching), section("quantize", Quantization)
    deterministic(judge.seed, int(read()["threads"]))
    case = read_case(student, section("stress", Families).families)
    gates = decide(case, judge, requirements)
    images, budget = case.test.images[:BATCH], requirements.latency_ms
    measured = measure(student, case.teacher_spec, case.rung, images, budget, judge.watts)
    trial = attempt(case, judge.trial_rows)
    measured = with_trial(measured, trial, everywhere(case.certificate))
    costs = operations(case, teaching, distillation, quantize)
    verdict = conclude(case, judge, gates, costs, measured)
    name, sure = str(read()["name"]), verdict.reproducible()
    sealed = card(name, case, sure, requirements, distillation)
    subject = write_evidence(case, verdict, sealed, EVIDENCE / student)
    text = card(name, case, verdict, requirements, distillation)
    write_text(REPORTS / student / "card.md", text)
    write_bytes(REPORTS / student / summary.NAME, summary.plot(verdict.gates))
    write_json(REPORTS / student / "verdict.json", as_json(verdict))
    said = "approved" if verdict.approved else "refused"
    print(f"judge: {student} {said}, evidence {subject.digest[:12]}")
    print(f"judge: {trial.why}")
    for gate in verdict.failed:
        print(f"judge: failed {gate.name}: {gate.why}")


if __name__ == "__main__":
    main(run)

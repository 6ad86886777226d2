"""`python -m tasks.judge STUDENT`: weigh everything known of one student and write the verdict.

A refused student ends the stage well: the verdict says so, and what follows from it is the flow's.
"""

from __future__ import annotations

from tasks.core.errors import ParamsError
from tasks.core.files import write_json
from tasks.core.params import read, section
from tasks.core.seeds import deterministic
from tasks.core.stage import main
from tasks.judge.card import card
from tasks.judge.case import REPORTS, read_case
from tasks.judge.chain import conclude
from tasks.judge.evidence import EVIDENCE, write_evidence
from tasks.judge.gates import decide
from tasks.judge.measured import measure
from tasks.judge.params import Distillation, Families, JudgeParams, Requirements
from tasks.judge.verdict import as_json


def run(arguments: list[str]) -> None:
    """Write `reports/STUDENT/verdict.json` and `evidence/STUDENT/`."""
    if len(arguments) != 1:
        raise ParamsError("python -m tasks.judge STUDENT: needs exactly one student")
    (student,) = arguments
    distillation = section("distill", Distillation)
    if student not in distillation.ship:
        known = ", ".join(distillation.ship)
        raise ParamsError(f"judge: '{student}' is none of distill.ship ({known}); name one of them")
    judge, requirements = section("judge", JudgeParams), section("requirements", Requirements)
    deterministic(judge.seed, int(read()["threads"]))
    case = read_case(student, section("stress", Families).families)
    gates = decide(case, judge, requirements)
    row = case.test.images[:1]
    measured = measure(student, case.teacher_spec, case.rung, row, requirements.latency_ms)
    verdict = conclude(case, judge, gates, measured)
    text = card(str(read()["name"]), case, verdict.reproducible(), requirements, distillation)
    subject = write_evidence(case, verdict, text, EVIDENCE / student)
    write_json(REPORTS / student / "verdict.json", as_json(verdict))
    said = "approved" if verdict.approved else "refused"
    print(f"judge: {student} {said}, evidence {subject.digest[:12]}")
    for gate in verdict.failed:
        print(f"judge: failed {gate.name}: {gate.why}")


if __name__ == "__main__":
    main(run)

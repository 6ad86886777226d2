"""`python -m tasks.stress STUDENT FAMILY`: put one shipped student through one stress family.

Ends well even where the family fails its gates or crashes: what that means is judge's to say.
"""

from __future__ import annotations

from pathlib import Path

from tasks.core.errors import ParamsError
from tasks.core.seeds import deterministic
from tasks.core.stage import main
from tasks.stress.budget import BUDGETS
from tasks.stress.case import load_case
from tasks.stress.params import read_params
from tasks.stress.report import examine, write_report

REPORTS = Path("reports")


def run(arguments: list[str]) -> None:
    """Read the case, run the family, write its report."""
    if len(arguments) != 2:
        raise ParamsError("python -m tasks.stress STUDENT FAMILY: needs exactly these two names")
    student, name = arguments
    family, shared, options = read_params(name)
    deterministic(shared.seed, threads=1)
    case = load_case(student, BUDGETS[shared.budget], shared.seed)
    report, outcome = examine(case, family, options)
    write_report(REPORTS / student / "stress", report, outcome)
    failed = [gate.name for gate in report.gates if not gate.passed]
    verdict = report.error or (f"fails {', '.join(failed)}" if failed else "all gates pass")
    print(f"stress {student}/{name}: {report.rows} rows, {verdict}", flush=True)


if __name__ == "__main__":
    main(run)

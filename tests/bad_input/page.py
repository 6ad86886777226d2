"""docs/errors.md, written from the cases and from what was really said."""

from __future__ import annotations

import re
from pathlib import Path

from tests.bad_input.case import Case
from tests.bad_input.cases import CASES

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
PASSING = (  # what differs from one run to the next
    (re.compile(r"process \d+ since [\d:T-]+"), "process 4711 since 2026-01-05T03:00:00"),
    (re.compile(r"student-[0-9a-f]{12}"), "student-0123456789ab"),
    (re.compile(r"\bline \d+"), "line N"),
    (re.compile(r"\bHEAD at [0-9a-f]{12}"), "HEAD at 0123456789ab"),
)
HEAD = """\
# What goes wrong, and what stillhouse says

An error is one line on stderr: what, where, what to do. Exit codes: 1 refused by a gate, 2 bad
input, 3 a fault of ours, 130 interrupted. Input is checked before work starts: after each of these
errors the former outputs, the sealed bundles and the registry are as they were.

This page is written by `python -m pytest tests/bad_input --write-errors` from what was really said,
and a test fails where it differs. `~` stands for the folder that holds the checkout `stillhouse`.
Ctrl-C and `kill -9` are no input: `tests/flows` holds what becomes of a run that they end.
"""
TOP = "| What is wrong | What is said | Exit code |\n|---|---|---|\n"


def row(case: Case, said: str, folder: Path) -> str:
    """One line of the table; `folder` holds the checkout."""
    said = said.replace(str(folder), "~")
    for pattern, standing in PASSING:
        said = pattern.sub(standing, said)
    told = f"`` {said} ``" if "`" in said else f"`{said}`"
    cells = [cell.replace("|", r"\|") for cell in (case.wrong, told, str(case.code))]
    return f"| {' | '.join(cells)} |"


def page(rows: dict[str, str]) -> str:
    """The whole page; `rows` by `Case.wrong`."""
    parts = [HEAD]
    for heading, cases in CASES.items():
        parts.append(
            f"\n## {heading}\n\n| What is wrong | What is said | Exit code |\n|---|---|---|\n"
        )
        parts += [f"{rows[case.wrong]}\n" for case in cases]
    return "".join(parts)

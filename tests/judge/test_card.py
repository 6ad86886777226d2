"""The card states the facts, the weaknesses and the limits, and no measured figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.core.files import write_json
from tasks.core.reports import StressReport
from tasks.judge.card import card, headline
from tasks.judge.case import Case, scored
from tasks.judge.chain import conclude
from tasks.judge.gates import decide
from tasks.judge.params import Distillation, JudgeParams, Requirements
from tasks.judge.stress import conditions
from tasks.judge.verdict import Costs, Verdict


@pytest.fixture
def written(
    case: Case,
    judge: JudgeParams,
    requirements: Requirements,
    distillation: Distillation,
    counted: Callable[[Case], Costs],
) -> Callable[[Case | None], tuple[str, Verdict]]:
    """The card and the verdict of a case, by default of the world's own."""

    def write(other: Case | None = None) -> tuple[str, Verdict]:
        about = other or case
        gates = decide(about, judge, requirements)
        verdict = conclude(about, judge, gates, counted(about), None)
        return card("animals", about, verdict, requirements, distillation), verdict

    return write


def test_the_headline_says_what_was_gained_and_what_it_cost(
    written: Callable[..., tuple[str, Verdict]], case: Case
) -> None:
    text, verdict = written()
    line = text.splitlines()[2]

    assert text.startswith("# animals: `student` passes its gates\n")
    assert f"{int(verdict.compression)}× fewer parameters" in line
    assert f"{int(verdict.compression_bytes)}× smaller" in line
    assert f"{100 * case.shipped.right.mean():.1f} %" in line
    assert f"{100 * verdict.loss_upper:.2f} points, with 95 % confidence" in line


def test_it_names_data_digests_what_was_set_aside_and_how_the_student_was_made(
    written: Callable[..., tuple[str, Verdict]], case: Case
) -> None:
    text, verdict = written()

    assert "d" * 64 in text
    assert "40 train, 40 val, 400 test" in text
    assert "1 for *label issue*" in text
    assert (
        "`teacher` → `assistant` (0.9 kd + 0.1 cross_entropy at temperature 4) → `student` (1 kd "
        "at temperature 2)." in text
    )
    assert "Taken: static: the fewest bytes." in text
    assert verdict.student.sha256 in text
    assert case.teacher_spec.sha256 in text
    assert "logistic regression" in text.lower()


def test_it_says_why_the_margin_is_no_finer(
    written: Callable[..., tuple[str, Verdict]],
) -> None:
    text, verdict = written()

    assert verdict.margin_resolution == pytest.approx(0.0067, abs=1e-4)
    assert "no loss below 0.67 points could be excluded" in text


def test_it_holds_no_measured_figure(written: Callable[..., tuple[str, Verdict]]) -> None:
    text, _ = written()

    assert "CPU-seconds" not in text
    assert "Median" not in text
    assert "joules" not in text
    assert "The latency budget (1000 ms)" in text


def test_it_lists_where_the_student_is_weaker(
    written: Callable[..., tuple[str, Verdict]], case: Case
) -> None:
    labels = case.test.labels
    wrong = np.isin(np.arange(len(labels)), np.flatnonzero(labels == 1)[:5])
    logits = np.eye(4, dtype=np.float32)[np.where(wrong, 0, labels)]
    weak = replace(
        case,
        teacher=scored(np.eye(4, dtype=np.float32)[labels], labels),
        shipped=scored(logits, labels),
    )

    text, verdict = written(weak)

    assert [w.where for w in verdict.weaker] == [
        "class bee",
        "adversarial, 1 % of the range",
        "camera = old",
        "fog bank, severity 1",
        "ink > 0.25",
    ]
    assert "| class bee | 100 | 100.0 % | 95.0 % | 5.0 | 0.12 |" in text
    assert "| fog bank, severity 1 | 100 | 90.0 % | 70.0 % | 20.0 |" in text
    assert "| ink > 0.25 | 36 | 90.0 % | 70.0 % | 20.0 |" in text


def test_attacks_in_l2_are_told_from_those_in_l_infinity(
    report: Callable[..., StressReport],
) -> None:
    both = {who: {"value": 0.9, "low": 0.8, "high": 1.0} for who in ("teacher", "student")}
    lines = [{"epsilon": 0.02, **both}, {"epsilon": 0.3, "norm": "l2", **both}]
    attacked = report("adversarial", "0" * 64, results={"epsilons": lines})

    assert [c.where for c in conditions(attacked)] == [
        "adversarial, 2 % of the range",
        "adversarial, L2 0.3",
    ]


def test_a_refused_student_says_so_first_and_shows_the_failed_gate_on_top(
    written: Callable[..., tuple[str, Verdict]], case: Case
) -> None:
    text, verdict = written(replace(case, parity=False))

    assert not verdict.approved
    assert text.startswith("# animals: `student` is refused\n")
    assert "**Refused** by `parity`: do not ship it." in text
    table = text.split("## Gates")[1].splitlines()
    assert table[4].startswith("| `parity` | **FAIL** | 0 | 1 |")


def test_a_family_without_a_report_is_not_taken_for_no_weakness(
    written: Callable[..., tuple[str, Verdict]], case: Case
) -> None:
    text, _ = written(replace(case, stress={"adversarial": "The family crashed: boom"}))

    assert "| adversarial |  | **FAIL** | The family crashed: boom |" in text
    assert "Nothing is known under: adversarial." in text


def test_a_class_name_cannot_break_the_table(
    written: Callable[..., tuple[str, Verdict]], case: Case
) -> None:
    labels = case.test.labels
    logits = np.eye(4, dtype=np.float32)[np.where(labels == 2, 1, labels)]

    text, _ = written(replace(case, shipped=scored(logits, labels)))

    (line,) = [row for row in text.splitlines() if row.startswith("| class cow")]
    assert line.startswith("| class cow\\| | 100 |")


def test_a_better_student_is_called_better(
    written: Callable[..., tuple[str, Verdict]], case: Case
) -> None:
    labels = case.test.labels
    poor = np.eye(4, dtype=np.float32)[
        np.where(np.arange(len(labels)) < 80, labels + 1, labels) % 4
    ]

    _, verdict = written(replace(case, teacher=scored(poor, labels)))

    assert "better than its teacher by at least" in headline(verdict)


def test_equal_cases_give_equal_cards(
    written: Callable[..., tuple[str, Verdict]], world: Path, report: Callable[..., StressReport]
) -> None:
    before, _ = written()
    write_json(world / "measured" / "teacher.json", {"cpu": {}, "cpu_seconds": 1e9})

    assert written()[0] == before
    assert report("fidelity", "a" * 64).passed

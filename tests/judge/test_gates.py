"""Each gate passes, fails, and fails on what is missing or not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.core.files import sha256, write_bytes
from tasks.core.reports import Gate, StressReport
from tasks.judge import gates
from tasks.judge.baseline import BaselinePredictions
from tasks.judge.case import Case, read_case, scored
from tasks.judge.params import JudgeParams, Requirements
from tasks.judge.stress import hear, stress_gates


def answering(case: Case, right: np.ndarray) -> np.ndarray:
    """Logits that are right exactly where `right` says so."""
    labels = case.test.labels
    return np.eye(4, dtype=np.float32)[np.where(right, labels, (labels + 1) % 4)]


def against(case: Case, teacher: np.ndarray, student: np.ndarray) -> Case:
    """The case with other answers of teacher and student."""
    return replace(
        case,
        teacher=scored(answering(case, teacher), case.test.labels),
        shipped=scored(answering(case, student), case.test.labels),
    )


def first(case: Case, wrong: int) -> np.ndarray:
    """All rows right but the first `wrong`."""
    return np.arange(len(case.test)) >= wrong


def test_accuracy_compares_the_lower_bound_not_the_point(
    case: Case, judge: JudgeParams, requirements: Requirements
) -> None:
    case = against(case, first(case, 0), first(case, 36))  # 91 %, at least 88.3 %
    strict = requirements.model_copy(update={"accuracy": 0.90})
    mild = requirements.model_copy(update={"accuracy": 0.88})

    assert not gates.accuracy(case, judge, strict).passed
    assert gates.accuracy(case, judge, mild).passed


def test_bytes_are_those_of_the_file_on_disk(case: Case, requirements: Requirements) -> None:
    size = case.file.stat().st_size

    assert gates.size(case, requirements.model_copy(update={"bytes": size})).passed
    assert not gates.size(case, requirements.model_copy(update={"bytes": size - 1})).passed


def test_a_student_that_equals_its_teacher_is_not_inferior(case: Case, judge: JudgeParams) -> None:
    case = against(case, first(case, 8), first(case, 8))
    gate = gates.non_inferior_to_teacher(case, judge)

    assert gate.passed
    assert gate.value == pytest.approx(0.0067, abs=1e-4)
    assert "nothing below 0.67" in gate.why


def test_a_loss_within_the_margin_still_fails_if_its_bound_is_not(
    case: Case, judge: JudgeParams
) -> None:
    case = against(case, first(case, 0), first(case, 8))  # two points lost, margin three
    gate = gates.non_inferior_to_teacher(case, judge)

    assert not gate.passed
    assert gate.value is not None
    assert 0.02 < 0.03 < gate.value


def test_five_equal_rows_which_wald_would_pass_are_refused(case: Case, judge: JudgeParams) -> None:
    few = np.arange(5)
    test = case.test.take(few)
    case = replace(
        case,
        test=test,
        teacher=scored(np.eye(4, dtype=np.float32)[test.labels], test.labels),
        shipped=scored(np.eye(4, dtype=np.float32)[test.labels], test.labels),
    )

    assert case.shipped.right.all()
    assert not gates.non_inferior_to_teacher(case, judge).passed


def test_macro_f1_sees_a_rare_class_that_accuracy_hides(case: Case, judge: JudgeParams) -> None:
    common = np.flatnonzero(case.test.labels != 3)
    rare = np.flatnonzero(case.test.labels == 3)[:8]
    case = replace(case, test=case.test.take(np.concatenate([common, rare])))
    everything = np.ones(len(case.test), dtype=bool)
    case = against(case, everything, np.arange(len(case.test)) < len(common) + 2)

    assert case.shipped.right.mean() > 0.98
    assert not gates.macro_f1_loss(case, judge).passed
    assert gates.macro_f1_loss(against(case, everything, everything), judge).passed


def test_one_ruined_class_is_named(case: Case, judge: JudgeParams) -> None:
    bees = np.flatnonzero(case.test.labels == 1)
    student = first(case, 0)
    student[bees[:12]] = False
    gate = gates.class_regression(against(case, first(case, 0), student), judge)

    assert not gate.passed
    assert gate.value == 1
    assert "Ruined: bee" in gate.why


def test_a_class_loss_that_chance_explains_is_no_ruin(case: Case, judge: JudgeParams) -> None:
    bees = np.flatnonzero(case.test.labels == 1)
    teacher, student = first(case, 0), first(case, 0)
    student[bees[:11]] = False  # eleven lost, five gained: six points, p = 0.1
    teacher[bees[11:16]] = False

    assert gates.class_regression(against(case, teacher, student), judge).passed


def test_a_significant_loss_below_the_class_margin_is_no_ruin(
    case: Case, judge: JudgeParams
) -> None:
    bees = np.flatnonzero(case.test.labels == 1)
    student = first(case, 0)
    student[bees[:12]] = False
    wide = judge.model_copy(update={"class_margin": 0.2})

    assert gates.class_regression(against(case, first(case, 0), student), wide).passed


@pytest.mark.parametrize(("rows", "told"), [(6, False), (7, True)])  # 4 · 2⁻⁶ > 0.05 >= 4 · 2⁻⁷
def test_a_class_with_too_few_rows_to_tell_fails_once_it_is_behind(
    case: Case, judge: JudgeParams, rows: int, told: bool
) -> None:
    bees = np.flatnonzero(case.test.labels == 1)
    others = np.flatnonzero(case.test.labels != 1)
    case = replace(case, test=case.test.take(np.concatenate([bees[:rows], others])))
    equal = gates.class_regression(against(case, first(case, 0), first(case, 0)), judge)
    gate = gates.class_regression(against(case, first(case, 0), first(case, 1)), judge)

    assert equal.passed
    assert gate.passed is told
    assert (f"Too few rows to tell: bee (1 of {rows} lost)." in gate.why) is not told


def test_only_rows_that_the_teacher_has_right_can_be_lost(case: Case, judge: JudgeParams) -> None:
    bees = np.flatnonzero(case.test.labels == 1)
    teacher, student = first(case, 0), first(case, 0)
    teacher[bees[6:]] = False  # of a hundred
    student[bees] = False
    gate = gates.class_regression(against(case, teacher, student), judge)

    assert not gate.passed
    assert "Too few rows to tell: bee (6 of 100 lost)." in gate.why


def test_a_class_without_test_rows_fails(case: Case, judge: JudgeParams) -> None:
    case = replace(case, test=case.test.take(case.test.labels != 3))
    everything = np.ones(len(case.test), dtype=bool)
    gate = gates.class_regression(against(case, everything, everything), judge)

    assert not gate.passed
    assert gate.value is None
    assert "dog" in gate.why


@pytest.mark.parametrize(("wrong", "passed"), [(100, True), (8, False), (0, False)])
def test_the_cheap_baseline_must_be_beaten_beyond_doubt(
    case: Case, judge: JudgeParams, wrong: int, passed: bool
) -> None:
    labels = case.test.labels
    predicted = np.where(first(case, wrong), labels, (labels + 1) % 4)
    case = replace(
        against(case, first(case, 0), first(case, 8)),
        baseline=BaselinePredictions(predicted, rows=40, features=60),
    )

    assert gates.better_than_baseline(case, judge).passed is passed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"met": False}, "misses"),
        ({"met": None}, "misses"),
        ({"model_sha256": "0" * 64}, "no report on this teacher"),
        ({"fingerprint": "0" * 64}, "other data"),
    ],
)
def test_a_teacher_that_is_not_known_to_meet_its_target_fails(
    case: Case, change: dict[str, object], said: str
) -> None:
    assert gates.teacher_requirement(case).passed
    gate = gates.teacher_requirement(
        replace(case, teacher_report={**(case.teacher_report or {}), **change})
    )

    assert not gate.passed
    assert said in gate.why


@pytest.mark.parametrize("stated", [False, None])
def test_parity_and_data_validation_fail_if_denied_or_unknown(
    case: Case, stated: bool | None
) -> None:
    assert gates.parity(case).passed
    assert gates.data_validation(case).passed

    assert not gates.parity(replace(case, parity=stated)).passed
    assert not gates.data_validation(replace(case, validation=stated)).passed


@pytest.mark.parametrize(
    "content", ["{}", '{"passed": "yes"}', '{"passed": 1}', "[true]", "{", None]
)
def test_a_report_that_states_nothing_clear_fails_its_gate(
    world: Path, content: str | None
) -> None:
    for path in (world / "ship/student/parity.json", world / "reports/validation/report.json"):
        path.unlink()
        if content is not None:
            path.write_text(content)
    case = read_case("student", ())

    assert not gates.parity(case).passed
    assert not gates.data_validation(case).passed


def test_a_student_that_refuses_real_rows_fails_and_they_count_as_wrong(
    world: Path, onnx_student: Callable[..., bytes]
) -> None:
    path = world / "ship/student/model.onnx"
    spec = world / "ship/student/spec.json"
    old = sha256(path)
    write_bytes(path, onnx_student(high=200))  # as if the range had been declared wrongly
    spec.write_text(spec.read_text().replace(old, sha256(path)))
    case = read_case("student", ())
    gate = gates.valid_rows(case)

    assert not gate.passed
    assert gate.value is not None
    assert gate.value < 1
    assert not case.shipped.right[~case.shipped.valid].any()


def test_logits_that_are_not_finite_are_wrong_whatever_the_label() -> None:
    logits = np.array([[math.nan, 0], [0, math.inf], [1, 0]], dtype=np.float32)

    found = scored(logits, np.array([0, 1, 0]))

    assert found.right.tolist() == [False, False, True]
    assert found.valid.tolist() == [False, False, True]


def test_every_gate_of_a_family_counts_under_its_name(
    report: Callable[..., StressReport], gate: Callable[..., Gate]
) -> None:
    heard = report("fidelity", "a" * 64, gates=(gate("fidelity.agreement"), gate("kl", False)))

    found = stress_gates("fidelity", heard)

    assert {g.name: g.passed for g in found} == {
        "stress.fidelity.agreement": True,
        "stress.fidelity.kl": False,
    }


@pytest.mark.parametrize(
    "change", [{"value": None}, {"margin": -0.1}, {"value": 0.1, "margin": -0.7}]
)
def test_a_stress_gate_that_claims_to_pass_against_its_own_figures_fails(
    report: Callable[..., StressReport], gate: Callable[..., Gate], change: dict[str, object]
) -> None:
    forged = gate("agreement").model_copy(update=change)

    (found,) = stress_gates("fidelity", report("fidelity", "a" * 64, gates=(forged,)))

    assert forged.passed
    assert not found.passed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"error": "ValueError: boom", "gates": ()}, "crashed: ValueError: boom"),
        ({"gates": ()}, "reported no gate"),
        ({"model_sha256": "b" * 64}, "another file"),
        ({"student": "other"}, "another file"),
        ({"results": {}}, "no report to believe"),
    ],
)
def test_a_family_that_cannot_be_believed_is_one_failed_gate(
    world: Path, report: Callable[..., StressReport], change: dict[str, object], said: str
) -> None:
    path = world / "corruptions.json"
    path.write_text(report("corruptions", "a" * 64, **change).model_dump_json())

    heard = hear(world, "student", "corruptions", "a" * 64)
    (gate,) = stress_gates("corruptions", heard)

    assert not gate.passed
    assert gate.name == "stress.corruptions"
    assert said in gate.why


@pytest.mark.parametrize("content", [None, "", "{}", '{"results": NaN}', "[]"])
def test_a_missing_or_broken_stress_report_is_one_failed_gate(
    world: Path, content: str | None
) -> None:
    if content is not None:
        (world / "fidelity.json").write_text(content)

    (gate,) = stress_gates("fidelity", hear(world, "student", "fidelity", "a" * 64))

    assert not gate.passed
    assert "no report to believe" in gate.why


def test_a_student_that_answers_the_opposite_fails_whatever_its_teacher(
    world: Path, onnx_student: Callable[..., bytes], judge: JudgeParams, requirements: Requirements
) -> None:
    path, spec = world / "ship/student/model.onnx", world / "ship/student/spec.json"
    old = sha256(path)
    write_bytes(path, onnx_student(sign=-1))
    spec.write_text(spec.read_text().replace(old, sha256(path)))

    decided = gates.decide(read_case("student", ("fidelity",)), judge, requirements)

    assert {g.name for g in decided if not g.passed} >= {
        "accuracy",
        "non_inferior_to_teacher",
        "macro_f1",
        "class_regression",
        "better_than_baseline",
        "stress.fidelity",
    }


def test_every_gate_says_a_sentence(
    case: Case, judge: JudgeParams, requirements: Requirements
) -> None:
    for gate in gates.decide(case, judge, requirements):
        assert gate.why[0].isupper() or gate.why[0].isdigit(), gate
        assert gate.why.endswith("."), gate

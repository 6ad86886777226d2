"""The verdict's laws, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from flows import remeasure
from tasks.core.cost import cpu
from tasks.core.files import canonical, read_json, write_json
from tasks.core.params import check
from tasks.core.reports import Gate
from tasks.judge.case import Case, scored
from tasks.judge.chain import conclude, ratio
from tasks.judge.compare import per_class
from tasks.judge.costs import Noted
from tasks.judge.measured import latency_gate, measure, read_noted
from tasks.judge.params import JudgeParams
from tasks.judge.verdict import Latency, Measured, as_json, read_verdict


def measured(gate: Gate) -> Measured:
    """Measured figures with one gate."""
    latency = Latency(teacher=3.0, float_student=1.0, student=0.5)
    return Measured(cpu=cpu(), latency_ms=latency, cpu_seconds={}, gates=(gate,))


@pytest.mark.parametrize(
    ("reproducible", "by_time", "approved"),
    [(True, True, True), (False, True, False), (True, False, False), (False, False, False)],
)
def test_approved_means_that_every_gate_passed(
    case: Case,
    judge: JudgeParams,
    gate: Callable[..., Gate],
    reproducible: bool,
    by_time: bool,
    approved: bool,
) -> None:
    verdict = conclude(
        case,
        judge,
        (gate("a"), gate("b", reproducible)),
        None,
        measured(gate("latency_ms", by_time)),
    )

    assert verdict.approved is approved
    assert verdict.reproducible().approved is reproducible
    assert verdict.reproducible().measured is None


def test_a_verdict_without_gates_cannot_approve(case: Case, judge: JudgeParams) -> None:
    with pytest.raises(ValidationError, match="contradicts"):
        conclude(case, judge, (), None, None)


def test_a_verdict_survives_the_file(
    case: Case, judge: JudgeParams, gate: Callable[..., Gate], tmp_path: Path
) -> None:
    verdict = conclude(case, judge, (gate("a"),), None, measured(gate("latency_ms")))
    write_json(tmp_path / "verdict.json", as_json(verdict))

    assert as_json(read_verdict(tmp_path / "verdict.json")) == as_json(verdict)


def test_floats_are_rounded_beyond_any_platforms_last_bit(
    case: Case, judge: JudgeParams, gate: Callable[..., Gate]
) -> None:
    value = 0.1 + 0.2
    noisy = gate("a").model_copy(update={"value": value, "margin": -1e-12})
    verdict = conclude(case, judge, (noisy,), None, None)

    (stored,) = as_json(verdict)["gates"]

    assert value != 0.3
    assert stored["value"] == 0.3
    assert '"margin": 0.0' in canonical(stored)


def test_weaknesses_are_worst_first_and_no_more_than_there_are(
    case: Case, judge: JudgeParams, gate: Callable[..., Gate]
) -> None:
    labels = case.test.labels
    wrong = np.zeros(len(labels), dtype=bool)
    for label, count in ((0, 2), (1, 7), (3, 4)):
        wrong[np.flatnonzero(labels == label)[:count]] = True
    eye = np.eye(4, dtype=np.float32)
    weak = replace(
        case,
        teacher=scored(eye[labels], labels),
        shipped=scored(eye[np.where(wrong, (labels + 1) % 4, labels)], labels),
        stress={},
    )

    verdict = conclude(weak, judge, (gate("a"),), None, None)

    assert [(w.where, round(100 * w.loss)) for w in verdict.weaker] == [
        ("class bee", 7),
        ("class dog", 4),
        ("class ant", 2),
    ]


def test_classes_are_compared_in_their_order(case: Case) -> None:
    found = per_class(
        case.teacher.right, case.shipped.right, case.test.labels, case.data.data.classes
    )

    assert [c.name for c in found] == list(case.data.data.classes)
    assert sum(c.pair.rows for c in found) == len(case.test)


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (0.5, "2.0 times as fast as its float version"),
        (1.3, "1.3 times as long as its float version takes"),
    ],
)
def test_the_latency_gate_says_what_quantization_did_to_speed(student: float, said: str) -> None:
    gate = latency_gate(Latency(teacher=3, float_student=1, student=student), budget_ms=1.0)

    assert gate.passed is (student <= 1.0)
    assert said in gate.why


def test_a_teacher_from_outside_is_timed_as_onnx(world: Path, case: Case) -> None:
    given = (world / "ship/student/float.onnx").read_bytes()
    (world / "models/teacher/model.onnx").write_bytes(given)
    black_box = case.teacher_spec.model_copy(update={"kind": "onnx", "architecture": None})

    found = measure("student", black_box, case.rung, case.test.images[:1], 1000, watts=5)

    assert found.latency_ms.teacher > 0
    assert found.gates[0].passed


def test_latency_is_measured_again_without_scoring_or_fitting_anything(world: Path) -> None:
    (world / "reports/teacher/predictions.parquet").unlink()  # what scoring needs
    (world / "data/train.parquet").unlink()  # what the baseline needs

    remeasure.run(["student", "again.json"])
    again = check(Measured, read_json(world / "again.json"), where="again.json")

    assert min(again.latency_ms.model_dump().values()) > 0
    assert [gate.name for gate in again.gates] == ["latency_ms"]
    assert set(again.cpu_seconds) == {"teacher", "assistant", "student", "quantize-student"}
    assert again.costs is not None
    assert again.costs.per_1000_predictions["student"].cpu_seconds == again.latency_ms.student


def test_what_no_stage_noted_as_a_number_is_unknown(tmp_path: Path) -> None:
    write_json(tmp_path / "teacher.json", {"cpu": {"cores": 2}, "cpu_seconds": 2})
    write_json(tmp_path / "odd.json", [1])
    write_json(tmp_path / "silent.json", {"cpu": {}, "cpu_seconds": "2"})
    (tmp_path / "endless.json").write_text('{"cpu_seconds": Infinity}')

    noted = read_noted(["teacher", "odd", "silent", "endless", "missing"], tmp_path)

    assert noted["teacher"] == Noted({"cores": 2}, 2.0, None)
    assert {found.cpu_seconds for found in noted.values()} == {2.0, None}
    assert [n for n, found in noted.items() if found.cpu_seconds is not None] == ["teacher"]


def test_nothing_to_divide_by_gives_nothing() -> None:
    assert ratio(3, 0) == 0

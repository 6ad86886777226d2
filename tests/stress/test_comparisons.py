"""Corruptions: the student beside its teacher, and that families measure the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tasks.core.session import open_session
from tasks.modalities.vision.corruptions import KINDS
from tasks.stress import calibration, corruptions
from tasks.stress.budget import BUDGETS
from tasks.stress.case import Case
from tasks.stress.corruptions import relative_error


def taught_by_itself(case: Case) -> Case:
    """The case with the student as its own teacher."""
    return replace(case, teacher=case.score, teacher_logits=case.student_logits)


@pytest.mark.parametrize("world", ["digits", "colour"])
def test_corruptions_report_every_kind_and_severity_with_intervals(
    world: str, request: pytest.FixtureRequest
) -> None:
    case = request.getfixturevalue(world).case(replace(BUDGETS["smoke"], corrupted=32))
    outcome = corruptions.run(case, corruptions.Params(severities=2, margin=0.2))
    kinds = outcome.results["kinds"]
    assert set(kinds) == set(KINDS)
    for line in kinds.values():
        assert len(line["severities"]) == 2
        for level in line["severities"]:
            for side in ("student", "teacher"):
                assert level[side]["low"] <= level[side]["value"] <= level[side]["high"]
    mean = np.mean([s["student"]["value"] for k in kinds.values() for s in k["severities"]])
    assert outcome.results["student"] == pytest.approx(mean)
    assert outcome.rows == 32


def test_a_student_as_strong_as_its_teacher_passes_and_has_a_relative_error_of_one(digits) -> None:
    case = taught_by_itself(digits.case())
    outcome = corruptions.run(case, corruptions.Params(severities=1, margin=0.05))
    assert outcome.results["mce"] == 1.0
    assert outcome.results["lost"] == 0.0
    assert outcome.gates[0].passed


def test_equal_answers_on_a_handful_of_rows_prove_too_little(digits) -> None:
    case = taught_by_itself(digits.case(replace(BUDGETS["smoke"], corrupted=5)))
    outcome = corruptions.run(case, corruptions.Params(severities=1, margin=0.1))
    assert outcome.results["lost"] == 0.0
    assert not outcome.gates[0].passed


def test_a_handful_of_rows_calibrates_nobody(digits) -> None:
    case = digits.case()
    few = case.test.take(np.arange(5))
    sure = 20 * np.eye(10, dtype=np.float32)[few.labels]
    five = replace(case, test=few, student_logits=sure, teacher_logits=sure)
    outcome = calibration.run(five, calibration.Params(ece=0.06))
    assert outcome.results["student"]["ece"] < 0.01
    assert not outcome.gates[0].passed


def test_a_student_that_corruptions_harm_more_fails(digits) -> None:
    case = digits.case()
    images = case.test.images.reshape(len(case.test), -1).astype(np.float32)

    def oracle(changed: np.ndarray) -> np.ndarray:
        near = ((changed.reshape(len(changed), 1, -1) - images) ** 2).sum(axis=2).argmin(axis=1)
        return np.eye(10, dtype=np.float32)[case.test.labels[near]]

    outcome = corruptions.run(
        replace(case, teacher=oracle), corruptions.Params(severities=3, margin=0.02)
    )
    assert outcome.results["lost"] > 0.02
    assert outcome.results["mce"] > 1
    assert not outcome.gates[0].passed


def test_relative_error_counts_a_kind_on_which_the_teacher_makes_no_error() -> None:
    none, one = np.zeros((2, 1, 4), dtype=bool), np.zeros((2, 1, 4), dtype=bool)
    one[0, 0, 0] = True
    assert relative_error(one, none) == pytest.approx((1.5 / 0.5 + 1) / 2)


def test_families_measure_the_onnx_file_and_not_the_float_network(digits, tmp_path: Path) -> None:
    case, path = digits.case(), tmp_path / "other.onnx"
    model = onnx.load(str(case.model))
    head = next(t for t in model.graph.initializer if t.name.endswith("head.weight"))
    head.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(head), head.name))
    onnx.save(model, str(path))
    case = replace(case, model=path, session=open_session(path))
    damaged = corruptions.run(case, corruptions.Params(severities=1, margin=0.1))
    assert damaged.results["student"] < 0.2

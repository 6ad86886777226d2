"""Corruptions and fidelity: the student beside its teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tasks.core.session import open_session, score
from tasks.core.statistics import wilson
from tasks.modalities.vision.corruptions import KINDS
from tasks.stress import corruptions, fidelity
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


def test_fidelity_counts_flips_both_ways_and_names_the_step_at_fault(digits) -> None:
    case = digits.case()
    labels, n = case.test.labels, len(case.test)
    teacher = np.eye(10, dtype=np.float32)[labels]
    student = teacher.copy()
    student[:4] = np.roll(student[:4], 1, axis=1)  # four rows lost
    teacher[10:12] = np.roll(teacher[10:12], 1, axis=1)  # two gained
    case = replace(case, teacher_logits=teacher * 9, student_logits=student * 9)
    outcome = fidelity.run(case, fidelity.Params(agreement=0.5))
    results, flips = outcome.results, outcome.kept["flips"].to_pydict()
    assert results["agreement"]["value"] == pytest.approx((n - 6) / n)
    assert (results["negative_flips"], results["positive_flips"]) == (4, 2)
    assert flips["row"] == [*case.test.rows[:4], *case.test.rows[10:12]]
    for teacher_says, float_says, step in zip(
        flips["teacher"], flips["float_student"], flips["lost_by"], strict=True
    ):
        assert step == ("quantization" if float_says == teacher_says else "distillation")
    assert set(flips["lost_by"]) == {"quantization", "distillation"}
    assert results["lost_by"]["quantization"] == flips["lost_by"].count("quantization")
    assert results["kl"]["mean"] > 0
    assert outcome.gates[0].value == wilson(n - 6, n)[0]


@pytest.mark.parametrize(("agreement", "passed"), [(0.97, False), (0.95, True)])
def test_fidelity_compares_the_lower_bound_of_agreement(
    agreement: float, passed: bool, digits
) -> None:
    case = taught_by_itself(digits.case())
    odd = case.student_logits.copy()
    odd[:3] = np.roll(odd[:3], 1, axis=1)  # 197 of 200 agree: 98.5 %, lower bound 96.3 %
    case = replace(case, student_logits=odd)
    assert fidelity.run(case, fidelity.Params(agreement=agreement)).gates[0].passed is passed


def test_families_measure_the_onnx_file_and_not_the_float_network(digits, tmp_path: Path) -> None:
    case, path = digits.case(), tmp_path / "other.onnx"
    model = onnx.load(str(case.model))
    head = next(t for t in model.graph.initializer if t.name.endswith("head.weight"))
    head.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(head), head.name))
    onnx.save(model, str(path))
    session = open_session(path)
    logits = score(session, case.test.images)[0]
    case = replace(case, model=path, session=session, student_logits=logits)
    outcome = fidelity.run(case, fidelity.Params(agreement=0.5))
    assert outcome.results["agreement"]["value"] < 0.2
    assert outcome.results["float_agreement"]["value"] > 0.7
    damaged = corruptions.run(case, corruptions.Params(severities=1, margin=0.1))
    assert damaged.results["student"] < 0.2

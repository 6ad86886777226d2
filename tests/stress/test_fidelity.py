"""Fidelity: every row that the shipped file lost or gained, and the step that did it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.errors import DataError
from tasks.core.files import read_json, write_json
from tasks.core.lineage import ABOVE, hand_on
from tasks.core.metrics import js, kl
from tasks.core.models import WEIGHTS, Architecture, ModelSpec, Origin, read_spec, write_weights
from tasks.core.session import open_session, score
from tasks.core.statistics import wilson
from tasks.modalities.vision.networks import build
from tasks.modalities.vision.scorers import load_network, network_scorer
from tasks.stress import fidelity
from tasks.stress.case import Case
from tasks.stress.flips import flip_ledger, replay
from tests.stress.conftest import World, spec

LOOSE = fidelity.Params(agreement=0.1, negative_flips=0.9)


def logits(predicted: np.ndarray) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[predicted] * 9


def written(folder: Path, name: str, above: ModelSpec, like: Case, seed: int) -> ModelSpec:
    """An untrained rung at `folder` that says it learned from `above`."""
    torch.manual_seed(seed)
    architecture = Architecture(widths=(4,))
    norm = read_spec(Path("models/teacher")).normalisation
    assert norm is not None
    network = build(architecture, like.data, norm)
    digest = write_weights(folder / WEIGHTS, network.state_dict())
    made = spec(network, architecture, like.data, digest).model_copy(
        update={"name": name, "learned_from": Origin(name=above.name, sha256=above.sha256)}
    )
    write_json(folder / "spec.json", made.model_dump(mode="json"))
    return made


def chained(world: World) -> Case:
    """The world with two rungs between teacher and student, handed on as distill does it."""
    case = world.case()
    models = Path("models")
    path = models / "teacher/spec.json"
    write_json(path, read_json(path) | {"name": "teacher"})
    first = written(models / "tutor", "tutor", read_spec(models / "teacher"), case, 1)
    hand_on(models / "teacher", models / "tutor")
    second = written(models / "helper", "helper", first, case, 2)
    hand_on(models / "tutor", models / "helper")
    hand_on(models / "helper", models / "student")
    path = Path("ship/student/float.json")
    origin = {"name": "helper", "sha256": second.sha256}
    write_json(path, read_json(path) | {"learned_from": origin})
    return case


def test_every_step_between_teacher_and_file_is_asked_in_order(digits) -> None:
    case = chained(digits)
    says = fidelity.predictions(case)
    assert list(says) == ["teacher", "tutor", "helper", "student (float)", "student"]
    tutor = network_scorer(load_network(Path("models/tutor")))(case.test.images)
    assert np.array_equal(says["tutor"], tutor.argmax(axis=1))
    assert np.array_equal(says["student"], case.student_logits.argmax(axis=1))
    steps = fidelity.run(case, LOOSE).results["steps"]
    assert [step["name"] for step in steps] == list(says)
    assert steps[0]["agreement"]["value"] == 1.0


def test_a_rung_that_was_not_handed_on_is_refused(digits) -> None:
    case = chained(digits)
    shutil.rmtree(Path("models/student") / ABOVE / "tutor")
    with pytest.raises(DataError, match=r"above/tutor/spec\.json: no such file"):
        fidelity.predictions(case)


def test_another_rung_than_the_one_learned_from_is_refused(digits) -> None:
    case = chained(digits)
    place = Path("models/student") / ABOVE / "tutor"
    written(place, "tutor", read_spec(Path("models/teacher")), case, 9)
    with pytest.raises(DataError, match="tutor: is not what 'helper' learned from; run distill"):
        fidelity.predictions(case)


def test_another_teacher_than_the_one_learned_from_is_refused(digits) -> None:
    case = chained(digits)
    written(Path("models/teacher"), "teacher", read_spec(Path("models/helper")), case, 9)
    with pytest.raises(DataError, match="models/teacher: is not what 'tutor' learned from"):
        fidelity.predictions(case)


def test_handing_on_again_leaves_nothing_of_a_former_chain(digits) -> None:
    case = chained(digits)
    other = Path("models/other")
    written(other, "other", read_spec(Path("models/teacher")), case, 3)
    hand_on(Path("models/teacher"), other)
    assert not (other / ABOVE).exists()
    hand_on(other, Path("models/student"))
    kept = [p.relative_to("models/student").as_posix() for p in Path("models/student").rglob("*.*")]
    assert sorted(kept) == ["above/other/spec.json", f"above/other/{WEIGHTS}"]


def says(*answers: list[int]) -> Mapping[str, np.ndarray]:
    names = ["teacher", "tutor", "student (float)", "student"]
    return {name: np.array(a) for name, a in zip(names, answers, strict=True)}


def test_a_flip_is_caused_by_the_first_step_that_went_wrong_and_stayed_wrong() -> None:
    # of label 0:  lost by rung, by float, by int8, wrong-right-wrong, gained by float, never right
    steps = says([0, 0, 0, 0, 1, 1], [1, 0, 0, 1, 1, 1], [1, 2, 0, 0, 0, 1], [2, 2, 3, 4, 0, 1])
    rows, margin = np.array(list("abcdef")), np.linspace(-1, 1, 6)
    ledger = flip_ledger(rows, np.zeros(6, dtype=np.int64), steps, margin)
    assert ledger["row"].to_pylist() == list("abcde")
    assert ledger["kind"].to_pylist() == ["negative"] * 4 + ["positive"]
    assert ledger["caused_by"].to_pylist() == [
        "tutor", "student (float)", "student", "student", "student (float)",
    ]  # fmt: skip
    assert ledger["predicted"][3].as_py() == {
        "teacher": 0, "tutor": 1, "student (float)": 0, "student": 4,
    }  # fmt: skip
    assert ledger["margin"].to_pylist() == pytest.approx([-1, -0.6, -0.2, 0.2, 0.6])


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=30))
def test_at_the_cause_and_after_it_every_step_is_like_the_last(table: list[list[int]]) -> None:
    answers = np.array(table).T
    steps = says(*answers.tolist())
    n = answers.shape[1]
    rows, labels = np.array([str(i) for i in range(n)]), np.zeros(n, dtype=np.int64)
    ledger = flip_ledger(rows, labels, steps, np.zeros(n))
    order, right = list(steps), answers == 0
    flipped = {str(i) for i in np.flatnonzero(right[0] != right[-1])}
    assert set(ledger["row"].to_pylist()) == flipped
    for flip in ledger.to_pylist():
        history, cause = right[:, int(flip["row"])], order.index(flip["caused_by"])
        assert (history[cause:] == history[-1]).all()
        assert history[cause - 1] != history[-1]


def test_flips_are_counted_by_step_and_class_and_bounded(digits) -> None:
    case = digits.case()
    labels, n = case.test.labels, len(case.test)
    teacher, student = labels.copy(), labels.copy()
    student[:4] = (labels[:4] + 1) % 10  # four rows lost
    teacher[10:12] = (labels[10:12] + 1) % 10  # two gained
    case = replace(case, teacher_logits=logits(teacher), student_logits=logits(student))
    floats = network_scorer(case.float_network)(case.test.images).argmax(axis=1)
    outcome = fidelity.run(case, LOOSE)
    results, ledger = outcome.results, outcome.kept["flips"].to_pylist()
    assert results["agreement"]["value"] == pytest.approx((n - 6) / n)
    assert (results["negative_flips"]["rows"], results["positive_flips"]["rows"]) == (4, 2)
    assert [flip["row"] for flip in ledger] == [*case.test.rows[:4], *case.test.rows[10:12]]
    by_quantization = floats[:4] == labels[:4]
    assert results["steps"][2]["negative_flips"] == by_quantization.sum() > 0
    assert sum(step["negative_flips"] for step in results["steps"]) == 4
    counted = {c["name"]: c["rows"] for c in results["negative_flips"]["classes"]}
    assert counted == {str(c): int((labels[:4] == c).sum()) for c in set(labels[:4].tolist())}
    assert all(flip["margin"] < 0 for flip in ledger[:4])
    assert all(flip["margin"] > 0 for flip in ledger[4:])
    assert {gate.name: gate.value for gate in outcome.gates} == {
        "fidelity.agreement": wilson(n - 6, n)[0],
        "fidelity.negative_flips": wilson(4, n)[1],
    }
    assert results["kl"]["mean"] > results["js"]["mean"] > 0


@pytest.mark.parametrize(("agreement", "passed"), [(0.97, False), (0.95, True)])
def test_the_lower_bound_of_agreement_is_compared(agreement: float, passed: bool, digits) -> None:
    case = digits.case()
    odd = case.student_logits.argmax(axis=1)
    teacher = odd.copy()
    teacher[:3] = (odd[:3] + 1) % 10  # 197 of 200 agree: 98.5 %, lower bound 96.3 %
    case = replace(case, teacher_logits=logits(teacher), student_logits=logits(odd))
    params = fidelity.Params(agreement=agreement, negative_flips=1)
    assert fidelity.run(case, params).gates[0].passed is passed


@pytest.mark.parametrize(("allowed", "passed"), [(0.03, False), (0.05, True)])
def test_the_upper_bound_of_negative_flips_is_compared(
    allowed: float, passed: bool, digits
) -> None:
    case = digits.case()
    student = case.test.labels.copy()
    student[:4] = (student[:4] + 1) % 10  # 4 of 200: 2 %, upper bound 4.4 %
    teacher = case.test.labels.copy()
    teacher[4:8] = (teacher[4:8] + 1) % 10  # as many gained: accuracy is equal
    case = replace(case, teacher_logits=logits(teacher), student_logits=logits(student))
    params = fidelity.Params(agreement=0, negative_flips=allowed)
    assert fidelity.run(case, params).gates[1].passed is passed


def test_the_onnx_file_is_measured_and_not_the_float_network(digits, tmp_path: Path) -> None:
    case, path = digits.case(), tmp_path / "other.onnx"
    model = onnx.load(str(case.model))
    head = next(t for t in model.graph.initializer if t.name.endswith("head.weight"))
    head.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(head), head.name))
    onnx.save(model, str(path))
    session = open_session(path)
    answers = score(session, case.test.images)[0]
    case = replace(case, model=path, session=session, student_logits=answers)
    results = fidelity.run(case, LOOSE).results
    assert results["agreement"]["value"] < 0.2
    assert results["steps"][1]["agreement"]["value"] > 0.7
    assert results["steps"][2]["negative_flips"] > 100, "quantization is at fault"


def former(rows: list[str], kinds: list[str]) -> pa.Table:
    return pa.table({"row": rows, "kind": kinds})


def test_a_replay_tells_what_recurs_is_mended_new_and_gone() -> None:
    ledger = former(["a", "b", "c", "p", "z"], ["negative"] * 3 + ["positive", "negative"])
    rows, labels = np.array(list("abcdep")), np.zeros(6, dtype=np.int64)
    teacher = np.array([0, 0, 1, 0, 1, 0])
    candidate = np.array([1, 0, 1, 1, 1, 1])
    found = replay(ledger, rows, labels, teacher, candidate)
    assert found.recur == ("a", "c"), "c too, though today's teacher is wrong about it"
    assert found.mended == ("b",)
    assert found.new == ("d", "p"), "not e, which the teacher has wrong as well"
    assert found.gone == ("z",)


def test_an_equal_candidate_mends_nothing_and_loses_nothing_new(digits) -> None:
    case = digits.case()
    ledger = fidelity.run(case, LOOSE).kept["flips"]
    teacher, student = (x.argmax(axis=1) for x in (case.teacher_logits, case.student_logits))
    found = replay(ledger, case.test.rows, case.test.labels, teacher, student)
    lost = (teacher == case.test.labels) & (student != case.test.labels)
    assert set(found.recur) == set(case.test.rows[lost])
    assert found.recur
    assert (found.mended, found.new, found.gone) == ((), (), ())


def test_a_table_of_another_form_is_refused() -> None:
    none = np.array([], dtype=np.int64)
    with pytest.raises(DataError, match="no flip ledger"):
        replay(pa.table({"row": ["a"], "lost_by": ["x"]}), np.array([]), none, none, none)


def test_js_is_symmetric_bounded_and_below_kl_where_both_are_small() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 50, 6))
    assert np.allclose(js(one, other), js(other, one))
    assert ((js(one, other) > 0) & (js(one, other) <= np.log(2))).all()
    near = one + 0.01 * other
    assert np.allclose(js(one, near) * 4, (kl(one, near) + kl(near, one)) / 2, rtol=1e-2)

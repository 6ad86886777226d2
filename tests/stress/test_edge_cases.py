"""Edge cases: each contract is broken by a model crafted to break it, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from tasks.core.session import open_session
from tasks.core.tables import Schema
from tasks.stress.case import Case
from tasks.stress.edge_cases import Params, legal, oddities, run

DIMENSIONS = "N, 1, 8, 8"
SCORE = """
    mean = ReduceMean<keepdims = 0>(input, axes)
    column = Unsqueeze(mean, one)
    logits = Mul(column, weights)
"""
CHECK = """
    above = GreaterOrEqual(input, low)
    below = LessOrEqual(input, high)
    both = And(above, below)
    number = Cast<to = 1>(both)
    least = ReduceMin<keepdims = 0>(number, axes)
    valid = Greater(least, half)
"""
CONTRACTS = {
    "signature", "nan", "infinity", "scale", "below_range", "one_step_outside", "within_range",
    "isolation", "finite", "refusal", "batch_sizes", "batch_invariance", "order_invariance",
    "thread_invariance", "determinism",
}  # fmt: skip


def broken(
    case: Case, path: Path, dimensions: str = DIMENSIONS, score: str = SCORE, check: str = CHECK
) -> set[str]:
    """The contracts that a crafted model breaks in place of the case's student."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 18]>
        made (float[{dimensions}] input) => (float[N, 10] logits, bool[N] valid)
        <float low = {{0}}, float high = {{16}}, float half = {{0.5}}, float zero = {{0}},
         float[1, 10] weights = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
         int64[3] axes = {{1, 2, 3}}, int64[1] one = {{1}}, int64[1] first = {{0}}>
        {{ {score} {check} }}
    """)
    onnx.save(model, str(path))
    outcome = run(replace(case, model=path, session=open_session(path)), Params())
    names = {gate.name.removeprefix("edge_cases.") for gate in outcome.gates}
    assert names == CONTRACTS
    return {g.name.removeprefix("edge_cases.") for g in outcome.gates if not g.passed}


@pytest.mark.parametrize("world", ["digits", "colour"])
def test_a_well_made_student_keeps_every_contract(
    world: str, request: pytest.FixtureRequest
) -> None:
    outcome = run(request.getfixturevalue(world).case(), Params())
    assert {gate.name for gate in outcome.gates if not gate.passed} == set()
    assert len(outcome.gates) == len(CONTRACTS)


def test_a_well_made_crafted_model_keeps_every_contract(digits, tmp_path: Path) -> None:
    assert broken(digits.case(), tmp_path / "made.onnx") == set()


def test_a_check_that_lets_nan_through_is_found(digits, tmp_path: Path) -> None:
    check = """
        below = Less(input, low)
        above = Greater(input, high)
        outside = Or(below, above)
        number = Cast<to = 1>(outside)
        most = ReduceMax<keepdims = 0>(number, axes)
        valid = Less(most, half)
    """
    assert broken(digits.case(), tmp_path / "made.onnx", check=check) == {"nan"}


def test_a_check_that_is_always_true_is_found(digits, tmp_path: Path) -> None:
    check = """
        same = Equal(mean, mean)
        not_same = Not(same)
        valid = Or(same, not_same)
    """
    wrong = {"nan", "infinity", "scale", "below_range", "one_step_outside"}
    assert broken(digits.case(), tmp_path / "made.onnx", check=check) == wrong


def test_a_check_of_the_upper_end_alone_is_found(digits, tmp_path: Path) -> None:
    check = CHECK.replace("GreaterOrEqual(input, low)", "LessOrEqual(input, high)")
    wrong = {"infinity", "below_range", "one_step_outside"}
    assert broken(digits.case(), tmp_path / "made.onnx", check=check) == wrong


def test_a_check_that_is_off_by_one_float_is_found(digits, tmp_path: Path) -> None:
    check = f"one_up = Constant<value_float = {np.nextafter(np.float32(16), np.float32(17))}>()"
    check += CHECK.replace("LessOrEqual(input, high)", "LessOrEqual(input, one_up)")
    assert broken(digits.case(), tmp_path / "made.onnx", check=check) == {"one_step_outside"}


def test_a_check_that_refuses_the_end_of_the_range_is_found(digits, tmp_path: Path) -> None:
    check = CHECK.replace("LessOrEqual", "Less")
    found = broken(digits.case(), tmp_path / "made.onnx", check=check)
    assert "within_range" in found


def test_a_check_of_the_whole_batch_is_found(digits, tmp_path: Path) -> None:
    check = CHECK.replace(
        "valid = Greater(least, half)",
        """
        worst = ReduceMin<keepdims = 1>(least, first)
        spread = Min(least, worst)
        valid = Greater(spread, half)
    """,
    )
    found = broken(digits.case(), tmp_path / "made.onnx", check=check)
    assert {"nan", "infinity", "scale", "below_range", "one_step_outside"} <= found


def test_logits_that_depend_on_the_batch_are_found(digits, tmp_path: Path) -> None:
    score = SCORE.replace(
        "logits = Mul(column, weights)",
        """
        batch = ReduceMax<keepdims = 1>(column, first)
        centred = Sub(column, batch)
        logits = Mul(centred, weights)
    """,
    )
    found = broken(digits.case(), tmp_path / "made.onnx", score=score)
    assert {"isolation", "batch_invariance"} <= found
    assert found <= {"isolation", "batch_invariance", "batch_sizes"}


def test_logits_that_depend_on_the_place_in_the_batch_are_found(digits, tmp_path: Path) -> None:
    score = SCORE.replace(
        "logits = Mul(column, weights)",
        """
        ones = Sub(column, column)
        step = Add(ones, half)
        place = CumSum(step, axis)
        moved = Add(column, place)
        logits = Mul(moved, weights)
    """,
    )
    score = "axis = Constant<value_int = 0>()" + score
    found = broken(digits.case(), tmp_path / "made.onnx", score=score)
    assert "order_invariance" in found


def test_a_valid_row_without_finite_logits_is_found(digits, tmp_path: Path) -> None:
    score = SCORE.replace("Mul(column, weights)", "Mul(inverse, weights)")
    score = score.replace("logits =", "inverse = Reciprocal(column)\n logits =")
    assert broken(digits.case(), tmp_path / "made.onnx", score=score) == {"finite"}


def test_a_path_to_nan_that_some_rows_take_is_found(digits, tmp_path: Path) -> None:
    score = SCORE.replace("Mul(column, weights)", "Mul(root, weights)")
    score = score.replace("logits =", "less = Sub(column, five)\n root = Sqrt(less)\n logits =")
    score = "five = Constant<value_float = 5.0>()" + score  # the square root of a dark row
    case = digits.case()
    dark = case.test.images.mean(axis=(1, 2, 3)) < 5
    assert 0 < dark.sum() < len(dark)
    assert broken(case, tmp_path / "made.onnx", score=score) == {"finite"}


def test_a_row_unlike_the_data_that_changes_the_others_is_found(digits, tmp_path: Path) -> None:
    score = SCORE.replace("Mul(column, weights)", "Mul(moved, weights)")
    score = score.replace(
        "logits =",
        """
        brightest = ReduceMax<keepdims = 1>(column, first)
        over = Sub(brightest, fifteen)
        excess = Relu(over)
        moved = Sub(column, excess)
        logits =""",
    )
    score = "fifteen = Constant<value_float = 15.0>()" + score  # no digit is so bright
    found = broken(digits.case(), tmp_path / "made.onnx", score=score)
    assert {"batch_invariance", "isolation"} <= found
    assert "finite" not in found


@pytest.mark.parametrize("span", [(0, 16), (-1, 1), (0, 1), (2, 3)])
def test_odd_rows_are_valid_and_hold_both_ends_and_their_neighbours(
    span: tuple[float, float],
) -> None:
    data = Schema(
        modality="vision", shape=(3, 4, 5), dtype="float32", range=span, classes=("a", "b")
    )
    random = np.random.default_rng(0)
    images = random.uniform(*span, (6, 3, 4, 5)).astype(np.float32)

    odd = oddities(images, data, random)

    low, high = (np.float32(v) for v in span)
    held = set(odd.ravel().view(np.uint32).tolist())
    wanted = [low, high, np.nextafter(low, high), np.nextafter(high, low)]
    if low <= 0:
        wanted += [np.float32(-0.0), np.float32(1e-45)]
    assert legal(odd, data).all()
    assert {int(np.float32(v).view(np.uint32)) for v in wanted} <= held


def test_a_scale_that_stays_in_the_range_is_told_since_it_cannot_be_refused(colour) -> None:
    found = run(colour.case(), Params()).results["unit_scale"]
    assert set(found) == {"valid", "accuracy"}
    assert found["valid"] == 1.0


def test_without_rows_no_contract_is_kept(digits) -> None:
    case = digits.case()
    with pytest.raises(ValueError, match="no test rows"):
        run(replace(case, test=case.test.take(np.arange(0))), Params())


def test_an_input_of_any_size_is_found(digits, tmp_path: Path) -> None:
    found = broken(digits.case(), tmp_path / "made.onnx", dimensions="N, C, H, W")
    assert found == {"refusal"}


def test_a_model_of_a_fixed_batch_crashes_the_family(digits, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Got invalid dimensions"):
        broken(digits.case(), tmp_path / "made.onnx", dimensions="1, 1, 8, 8")


def test_a_model_without_valid_is_found(digits, tmp_path: Path) -> None:
    case, path = digits.case(), tmp_path / "made.onnx"
    model = onnx.load(str(case.model))
    del model.graph.output[1]
    onnx.save(model, str(path))
    outcome = run(replace(case, model=path, session=open_session(path)), Params())
    failed = {gate.name.removeprefix("edge_cases.") for gate in outcome.gates if not gate.passed}
    assert {"signature", "nan", "infinity", "scale", "below_range", "batch_sizes"} <= failed

"""The choice: fewest bytes within the bound; time may veto, and ranks nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from tasks.core.errors import GateError
from tasks.core.session import open_session, score
from tasks.core.statistics import tango_upper
from tasks.core.tables import Schema, Table
from tasks.quantize.contract import shipped
from tasks.quantize.goals import check_goals, unreached
from tasks.quantize.params import QuantizeParams
from tasks.quantize.search import Candidate, Goals, choose, frontier, measure

BUDGET = 3.0
TIMES = {"p50": 1.5, "p95": 2.5}
GOALS = Goals(accuracy_drop=0.02)
FLOATS = Candidate("float32", 30_000, 300, 0.97, 0, 0, 0.0, 1.0, 0.0, 1.0, 2.0)
STATIC = replace(FLOATS, scheme="static", bytes=12_000, accuracy=0.96, lost=3, bound=0.018)
QAT = replace(STATIC, scheme="qat", accuracy=0.965, lost=2, bound=0.015)
DYNAMIC = replace(FLOATS, scheme="dynamic", bytes=11_000, batch_delta=0.2, bound=0.01)

PARAMS = Path(__file__).parents[2] / "params.yaml"


def test_the_fewest_bytes_within_the_bound_win() -> None:
    choice = choose([FLOATS, STATIC], GOALS, BUDGET)

    assert choice.chosen == "static"
    assert "12,000" in choice.why
    assert choice.reasons["float32"] == "qualifies, and is 18,000 bytes larger than static"


def test_a_better_point_does_not_help_a_worse_bound() -> None:
    sure = replace(STATIC, scheme="qat", bytes=13_000, accuracy=0.95, bound=0.019)
    lucky = replace(STATIC, accuracy=0.99, lost=9, gained=15, bound=0.0201)

    choice = choose([FLOATS, lucky, sure], GOALS, BUDGET)

    assert choice.chosen == "qat"
    assert choice.reasons["static"].startswith("refused: it may lose 2.01 points")
    assert "9 lost, 15 gained of 300 rows" in choice.reasons["static"]
    assert choice.why.endswith("2.00 are allowed.")
    assert "The next smaller, static" in choice.why


def test_a_bound_at_the_limit_qualifies() -> None:
    assert choose([FLOATS, replace(STATIC, bound=0.02)], GOALS, BUDGET).chosen == "static"


def test_logits_that_depend_on_the_batch_are_refused() -> None:
    choice = choose([FLOATS, STATIC, DYNAMIC], GOALS, BUDGET)

    assert choice.chosen == "static"
    assert "other rows of its batch" in choice.reasons["dynamic"]


def test_time_vetoes_and_never_ranks() -> None:
    fast, slow = replace(STATIC, latency_ms=3.0), replace(FLOATS, latency_ms=0.01)

    assert choose([slow, fast], GOALS, BUDGET).chosen == "static"
    vetoed = choose([slow, replace(fast, latency_ms=3.01)], GOALS, BUDGET)
    assert vetoed.chosen == "float32"
    assert vetoed.vetoed == ("static",)
    assert "latency budget" in vetoed.reasons["static"]
    assert "3.01" not in vetoed.reasons["static"]  # times stand under measured/


def test_a_percentile_vetoes_too() -> None:
    goals = replace(GOALS, latency_ms_p95=2.0)

    assert choose([FLOATS, STATIC], goals, BUDGET).chosen == "static"
    late = choose([FLOATS, replace(STATIC, latency_ms_p95=2.01)], goals, BUDGET)
    assert (late.chosen, late.vetoed) == ("float32", ("static",))


def test_a_percentile_vetoes_with_the_margin_of_the_median() -> None:
    goals = replace(GOALS, latency_ms_p95=2.0, latency_margin=1.5)

    assert choose([FLOATS, replace(STATIC, latency_ms_p95=3.0)], goals, BUDGET).vetoed == ()
    late = choose([FLOATS, replace(STATIC, latency_ms_p95=3.01)], goals, BUDGET)
    assert (late.chosen, late.vetoed) == ("float32", ("static",))


def test_the_margin_lets_a_goal_be_reached() -> None:
    goals = Goals(0.02, latency_ms_p95=1.5, latency_margin=1.5)

    assert unreached([FLOATS], goals, BUDGET) is None
    assert unreached([FLOATS], replace(goals, latency_margin=1.3), BUDGET)


def test_what_does_not_qualify_has_a_label_of_the_first_reason() -> None:
    slow = replace(FLOATS, scheme="weights8", bytes=13_000, latency_ms=9.0)
    large = replace(FLOATS, scheme="float16", bytes=15_000)
    poor = replace(STATIC, scheme="weights4", bound=0.3, latency_ms=9.0)

    choice = choose(
        [FLOATS, STATIC, DYNAMIC, slow, large, poor], replace(GOALS, bytes=14_000), BUDGET
    )

    assert choice.labels == {
        "float32": "too large", "float16": "too large", "dynamic": "batch",
        "weights8": "too slow", "weights4": "accuracy",
    }  # fmt: skip


def test_a_file_may_not_be_larger_than_asked() -> None:
    goals = replace(GOALS, bytes=11_999)
    other = replace(STATIC, scheme="qat", bytes=11_999)

    choice = choose([FLOATS, STATIC, other], goals, BUDGET)

    assert choice.chosen == "qat"
    assert choice.reasons["static"] == "refused: 12,000 bytes, and quantize.bytes allows 11,999"


@pytest.mark.parametrize(
    ("goals", "said"),
    [
        (Goals(0.02, bytes=9_000), "bytes 9,000 binds: qat is nearest with 12,000"),
        (
            Goals(0.02, latency_ms_p95=1.0, latency_margin=1.5),
            "latency_ms_p95 x latency_margin 1.5 binds: float32 is nearest with 2",
        ),
        (
            Goals(0.001, bytes=12_000),
            "accuracy_drop 0.001 binds: qat is nearest with 0.015; "
            "bytes 12,000 binds: float32 is nearest with 30,000",
        ),
        (
            Goals(0.001, 9_000, 1.0),
            "each misses two or more; accuracy_drop 0.001: float32 reaches 0; "
            "bytes 9,000: qat reaches 12,000; "
            "latency_ms_p95 x latency_margin 1: float32 reaches 2; "
            "latency_ms x latency_margin 3: float32 reaches 1",
        ),
    ],
)
def test_a_goal_out_of_reach_is_named_with_the_nearest(goals: Goals, said: str) -> None:
    assert unreached([FLOATS, STATIC, QAT, DYNAMIC], goals, BUDGET) == said


def test_the_budget_of_the_median_may_bind_as_well() -> None:
    slow = [replace(c, latency_ms=4.0) for c in (FLOATS, STATIC)]
    said = unreached(slow, Goals(0.02, bytes=12_000), BUDGET)
    assert said == "latency_ms x latency_margin 3 binds: static is nearest with 4"


def test_where_no_candidate_is_sound_that_is_said() -> None:
    said = unreached([DYNAMIC], Goals(0.02, bytes=1), BUDGET)
    assert said == "the logits of every candidate depend on the other rows of a batch"


def test_all_goals_missed_are_one_line_that_says_what_to_do() -> None:
    with pytest.raises(GateError) as error:
        check_goals("tiny", [FLOATS, STATIC], Goals(0.02, 9_000, 1.0), BUDGET)

    said = str(error.value)
    assert said.startswith("tiny: no candidate keeps to all goals of quantize (each misses two")
    assert said.endswith("raise a goal, or add to quantize.schemes")
    assert "\n" not in said


def test_goals_within_reach_are_no_news() -> None:
    assert unreached([FLOATS, STATIC], Goals(0.02, 12_000, 2.0), BUDGET) is None
    check_goals("tiny", [FLOATS, STATIC], Goals(0.0001), 0.01)  # none but what always was asked
    with pytest.raises(GateError, match="tiny: no candidate keeps to all goals of quantize"):
        check_goals("tiny", [FLOATS, STATIC], Goals(0.02, bytes=1), BUDGET)


def test_equal_bytes_go_to_accuracy_then_to_the_name() -> None:
    assert choose([FLOATS, STATIC, QAT], GOALS, BUDGET).chosen == "qat"
    assert choose([FLOATS, replace(STATIC, accuracy=0.99), QAT], GOALS, BUDGET).chosen == "static"
    even = replace(STATIC, accuracy=QAT.accuracy)
    assert choose([FLOATS, even, QAT], GOALS, BUDGET).chosen == "qat"
    assert "no less accurate" in choose([FLOATS, STATIC, QAT], GOALS, BUDGET).reasons["static"]


def test_the_float_student_ships_if_nothing_qualifies() -> None:
    choice = choose([replace(FLOATS, latency_ms=9), replace(STATIC, bound=0.3)], GOALS, BUDGET)

    assert choice.chosen == "float32"
    assert "no candidate qualifies" in choice.why
    assert choice.vetoed == ("float32",)


def test_the_order_of_candidates_changes_nothing() -> None:
    found = {
        choose(order, GOALS, BUDGET).why
        for order in itertools.permutations([FLOATS, STATIC, QAT, DYNAMIC])
    }

    assert len(found) == 1


def test_the_frontier_names_losers_and_no_time() -> None:
    candidates = [FLOATS, STATIC, DYNAMIC]
    document = frontier("tiny", candidates, choose(candidates, GOALS, BUDGET), 0.02)

    listed = document["candidates"]
    assert isinstance(listed, list)
    assert [c["scheme"] for c in listed if isinstance(c, dict)] == ["dynamic", "static", "float32"]
    assert all(isinstance(c, dict) and "latency_ms" not in c and c["reason"] for c in listed)
    assert (document["student"], document["rows"], document["chosen"]) == ("tiny", 300, "static")


def test_a_file_is_measured_in_pairs_against_the_float_one(
    floats: onnx.ModelProto, data: Schema, val_rows: Table
) -> None:
    content = shipped(floats, data)
    logits, _ = score(open_session(content), val_rows.images)
    right = logits.argmax(1) == val_rows.labels
    better = logits.copy()  # a reference that has 4 more rows right and 1 fewer
    wrong, sound = np.flatnonzero(~right), np.flatnonzero(right)
    relabelled = replace(
        val_rows, labels=np.where(np.isin(np.arange(len(right)), sound[:4]),
                                  (logits.argmax(1) + 1) % 3, logits.argmax(1)),
    )  # fmt: skip
    better[sound[:4]] = np.eye(3)[relabelled.labels[sound[:4]]]
    better[sound[4]] = np.eye(3)[(relabelled.labels[sound[4]] + 1) % 3]

    found = measure("static", content, relabelled, better.astype(np.float32), TIMES)

    assert (found.lost, found.gained, found.rows) == (4, 1, len(right))
    assert found.bound == pytest.approx(tango_upper(4, 1, len(right)))
    assert found.accuracy == pytest.approx(1 - 4 / len(right))
    assert found.agreement == pytest.approx(1 - 5 / len(right))
    assert found.bytes == len(content)
    assert (found.latency_ms, found.latency_ms_p95) == (1.5, 2.5)
    assert found.batch_delta <= 1e-4
    assert len(wrong) < len(right) / 2


def test_the_float_student_loses_nothing_to_itself(
    floats: onnx.ModelProto, data: Schema, val_rows: Table
) -> None:
    content = shipped(floats, data)
    logits, _ = score(open_session(content), val_rows.images)

    assert measure("float32", content, val_rows, logits, TIMES).bound == 0.0


def test_the_goals_of_a_project_carry_its_margin() -> None:
    given = yaml.safe_load(PARAMS.read_text())["quantize"]
    given |= {"latency_ms_p95": 2.0, "latency_margin": 1.5}

    assert QuantizeParams.model_validate(given).goals.p95_budget_ms == 3.0

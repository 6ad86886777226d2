"""What a rung must have for its losses, found before anything trains."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.core.errors import ParamsError
from tasks.core.params import check
from tasks.distill.params import DistillParams, Rung
from tests.distill.lessons import INSIDE, RUNG, TINY, rung


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"losses": {"hint": 1.0}}, "rung: loss 'hint' needs 'layers', which is not there; add it"),
        ({"losses": {"attention": 1.0, "kd": 1.0}}, "loss 'attention' needs 'layers'"),
        (
            {"losses": {"hint": 1.0}, "layers": {"a": "b"}},
            "a bank holds logits and no layers; set signal: live",
        ),
        (
            {"losses": {"kd": 1.0}, "layers": {"a": "b"}, "signal": "live"},
            "no loss of this rung reads 'layers'; .* attention, hint, rkd, similarity",
        ),
        ({"losses": {"adversarial": 1.0}}, "loss 'adversarial' needs 'adversary'"),
        (
            {"losses": {"kd": 1.0}, "adversary": TINY},
            "no loss of this rung reads 'adversary'; .* adversarial",
        ),
        (
            {"losses": {"adversarial": 1.0}, "adversary": TINY | {"epsilon": 0}},
            "adversary.epsilon: must be greater than 0",
        ),
        ({"losses": {"kd": 1.0}, "dkd": {"beta": 1.0}}, "no loss of this rung reads 'dkd'"),
        ({"losses": {"kd": 0.0, "dkd": 0.0}}, "must not sum to 0"),
        ({"losses": {"kd": 2.0, "dkd": -1.0}}, "must not be negative"),
        ({"losses": {"kd": 1.0}, "temperature": 0}, "temperature: must be greater than 0"),
        ({"losses": {"kd": 1.0}, "signal": "both"}, "signal: must be 'bank' or 'live'"),
    ],
)
def test_a_rung_that_lacks_what_its_losses_need_is_refused(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ParamsError, match=says):
        check(Rung, RUNG | change, "rung")


def test_rows_that_a_rung_lost_weigh_nothing_below_the_teacher() -> None:
    content = {"ship": ["s"], "rungs": {"s": RUNG | {"losses": {"kd": 1.0}, "flip_weight": 1.0}}}

    with pytest.raises(ParamsError, match="flip_weight is for rows that a rung above lost"):
        check(DistillParams, content, "distill")


def test_relations_need_no_layers_and_take_them_where_they_are() -> None:
    assert rung("rkd").layers == {}
    assert rung("similarity", **INSIDE).layers == {"near": "far"}


@pytest.mark.parametrize(
    ("above", "says"),
    [
        ({}, "'teacher' hands none on; use kd"),
        ({"from": "tutor"}, "'tutor' hands none on; set hand_on in 'tutor', or use kd"),
    ],
)
def test_dense_guidance_below_a_rung_that_hands_nothing_on_is_refused(
    above: dict[str, Any], says: str
) -> None:
    tutor = RUNG | {"losses": {"kd": 1.0}}
    guided = RUNG | {"losses": {"dense": 1.0}} | above
    with pytest.raises(ParamsError, match=says):
        check(DistillParams, {"ship": ["pupil"], "rungs": {"tutor": tutor, "pupil": guided}}, "p")
    rungs = {"tutor": tutor | {"hand_on": True}, "pupil": guided | {"from": "tutor"}}
    check(DistillParams, {"ship": ["pupil"], "rungs": rungs}, "p")

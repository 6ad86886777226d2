"""What no section of `params.yaml` can see alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.params import checked
from tasks.core.errors import ParamsError
from tasks.core.params import read
from tests.bad_input.case import edited

ROOT = Path(__file__).parents[2]
FIRST, SECOND = "distill.rungs.assistant", "distill.rungs.student"


def check(values: dict[str, Any]) -> None:
    checked(edited(read(ROOT / "presets/digits.yaml"), values), "params.yaml")


def hint(rung: str, ours: str, theirs: str) -> dict[str, Any]:
    """`rung` learns from one layer of the model above."""
    return {
        f"{rung}.losses": {"hint": 1.0},
        f"{rung}.adversary": None,
        f"{rung}.signal": "live",
        f"{rung}.layers": {ours: theirs},
    }


def test_layers_of_a_network_may_be_read_wherever_it_comes_from() -> None:
    check(hint(FIRST, "body.1", "body.2"))
    check(hint(SECOND, "body.1.conv1", "body.2"))
    given = {"teach.source": "safetensors", "teach.path": "given"}
    check(hint(FIRST, "body.1", "only.the.folder.knows") | given)
    check(hint(SECOND, "body.1", "body.2") | given | {"teach.source": "onnx"})


@pytest.mark.parametrize("source", ["onnx", "huggingface", "ensemble"])
def test_a_black_box_shows_no_layers(source: str) -> None:
    member = {"source": "onnx", "path": "given"}
    place = {"members": [member, member]} if source == "ensemble" else {"path": "given"}
    teach = {"teach.source": source} | {f"teach.{key}": value for key, value in place.items()}
    check(teach)
    with pytest.raises(ParamsError, match=f"{FIRST}.layers: a teacher of source {source} is a bl"):
        check(hint(FIRST, "body.1", "body.2") | teach)


@pytest.mark.parametrize(
    ("rung", "ours", "theirs", "says"),
    [
        (FIRST, "body.3", "body.2", f"{FIRST}.layers: assistant: no layer 'body.3'"),
        (FIRST, "body.1", "body.3", f"{FIRST}.layers: teacher: no layer 'body.3'"),
        (SECOND, "body.2", "body.2", f"{SECOND}.layers: student: no layer 'body.2'"),
        (SECOND, "body.1", "body.3", f"{SECOND}.layers: assistant: no layer 'body.3'"),
    ],
)
def test_a_layer_that_one_of_the_two_lacks_is_found_before_anything_trains(
    rung: str, ours: str, theirs: str, says: str
) -> None:
    with pytest.raises(ParamsError, match=says):
        check(hint(rung, ours, theirs))


def test_out_of_fold_labels_are_not_to_be_had_live() -> None:
    check({f"{SECOND}.signal": "live", "teach.folds": 3})
    with pytest.raises(ParamsError, match="a live teacher has seen every training row"):
        check({f"{FIRST}.signal": "live", "teach.folds": 3})

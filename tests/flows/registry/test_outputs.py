from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.outputs import (
    curves,
    figures,
    flat_params,
    lock_objects,
    read_lock,
    read_outputs,
)
from tasks.core.errors import DataError


def test_reports_speak_for_themselves_and_measured_figures_say_that_they_are(trees: Any) -> None:
    entries = read_lock(trees.root)

    judge = read_outputs(trees.root, "judge@student", entries["judge@student"])
    student = read_outputs(trees.root, "distill@student", entries["distill@student"])

    assert judge is not None
    assert student is not None
    assert judge.metrics["retention"] == 0.995
    assert judge.metrics["gates_passed"] == judge.metrics["gates"] == 2
    assert judge.metrics["chain.student.accuracy.low"] == 0.96
    assert judge.metrics["measured.gates.latency_ms.value"] == 0.2
    assert student.metrics["measured.cpu_seconds"] == 1.5
    assert student.params == {"threads": "1", "distill.rungs.student.temperature": "4.0"}
    assert len(list(curves(student.history))) == 5


def test_the_raw_data_of_a_run_are_those_that_were_taken_in(trees: Any) -> None:
    """A rung that was removed stays in `dvc.lock`, with the raw data of its day."""
    entries = read_lock(trees.root)
    (taken,) = entries["ingest"]["deps"]
    removed = {"cmd": "", "deps": [taken | {"md5": "0d.dir"}], "outs": []}

    assert lock_objects(entries | {"distill@removed": removed})["data/raw"] == taken["md5"]


def test_neither_data_nor_weights_are_artefacts(trees: Any) -> None:
    shown = {
        str(path)
        for stage, entry in read_lock(trees.root).items()
        for path in read_outputs(trees.root, stage, entry).artefacts  # type: ignore[union-attr]
    }

    assert {
        "reports/student/stress/adversarial/plot.png",
        "reports/student/card.md",
        "evidence/student/card.md",
    } < shown
    assert not [name for name in shown if name.endswith((".parquet", ".safetensors", ".onnx"))]


@pytest.mark.parametrize("spoiled", ["reports/student/verdict.json", "evidence/student/card.md"])
def test_a_file_that_is_not_as_locked_is_nobodys_output(trees: Any, spoiled: str) -> None:
    with (trees.root / spoiled).open("a") as file:
        file.write(" ")

    stage = "judge@student"
    assert read_outputs(trees.root, stage, read_lock(trees.root)[stage]) is None


def test_a_torn_lock_is_an_error_in_one_line(tmp_path: Path) -> None:
    for torn in ("", "schema: '2.0'\nstages:\n  teach:\n    cmd: [", "stages: 3"):
        (tmp_path / "dvc.lock").write_text(torn)
        with pytest.raises(DataError, match="not a whole lock file; restore it from git"):
            read_lock(tmp_path)


def test_numbers_that_are_not_finite_and_lists_without_names_are_no_figures() -> None:
    assert figures({"a": float("nan"), "b": [1, 2], "c": None, "d": "x", "e": True}) == {"e": 1.0}


def test_a_stage_without_parameters_has_none() -> None:
    assert flat_params({"cmd": "true"}) == {}

"""What cannot be put under stress says so in one line, and never passes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tasks.core.errors import DataError
from tasks.core.params import section
from tasks.core.reports import StressReport
from tasks.core.tables import read_fingerprint, read_split, write_table
from tasks.stress.__main__ import run
from tasks.stress.params import StressParams, family
from tasks.stress.report import examine

FAMILIES = [
    "adversarial", "corruptions", "edge_cases", "fidelity", "slices", "calibration", "security"
]  # fmt: skip


def ruin(path: Path) -> None:
    """One weight of the last layer becomes NaN."""
    model = onnx.load(str(path))
    head = next(t for t in model.graph.initializer if t.name.endswith("head.weight"))
    values = onnx.numpy_helper.to_array(head).copy()
    values.flat[0] = np.nan
    head.CopyFrom(onnx.numpy_helper.from_array(values, head.name))
    onnx.save(model, str(path))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.usefixtures("digits")
def test_a_model_that_answers_nan_passes_no_family(name: str) -> None:
    ruin(Path("ship/student/model.onnx"))

    run(["student", name])

    path = Path("reports/student/stress") / f"{name}.json"
    report = StressReport.model_validate_json(path.read_text())
    assert not report.passed
    if name == "edge_cases":
        assert [gate.name for gate in report.gates if not gate.passed] == ["edge_cases.finite"]
    else:
        assert report.error is not None
        assert "not finite" in report.error
        assert report.gates == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_passes_without_rows(name: str, digits) -> None:
    case = digits.case()
    found = family(name)
    options = getattr(section("stress", StressParams), name)
    none = replace(
        case,
        test=case.test.take(np.arange(0)),
        student_logits=case.student_logits[:0],
        teacher_logits=case.teacher_logits[:0],
    )

    report, _ = examine(none, found, found.params.model_validate(options))

    assert not report.passed


@pytest.mark.usefixtures("digits")
def test_an_empty_test_table_is_refused() -> None:
    data = read_fingerprint().data
    write_table(Path("data/test.parquet"), read_split("test", data).take(np.arange(0)))
    with pytest.raises(DataError, match=r"data/test\.parquet: no rows .* add some"):
        run(["student", "fidelity"])


@pytest.mark.usefixtures("digits")
def test_a_teacher_that_is_missing_is_refused() -> None:
    shutil.rmtree("models/teacher")
    with pytest.raises(DataError, match=r"models/teacher/spec\.json: no such file"):
        run(["student", "fidelity"])


@pytest.mark.usefixtures("digits")
def test_training_rows_that_are_missing_fail_security_alone() -> None:
    Path("data/train.parquet").unlink()
    run(["student", "edge_cases"])
    run(["student", "security"])
    path = Path("reports/student/stress/security.json")
    error = StressReport.model_validate_json(path.read_text()).error
    assert error is not None
    assert "data/train.parquet: no such file" in error

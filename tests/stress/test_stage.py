"""`python -m tasks.stress STUDENT FAMILY`: files in, report and folder out, whatever happens."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

import tasks.stress.fidelity
from tasks.core.errors import DataError, ParamsError
from tasks.core.files import sha256, tree_sha256
from tasks.core.params import Section
from tasks.core.reports import StressReport
from tasks.stress.__main__ import run
from tasks.stress.case import Outcome
from tasks.stress.params import Family
from tasks.stress.report import examine

STRESS = Path("reports/student/stress")
FAMILIES = [
    "adversarial",
    "corruptions",
    "edge_cases",
    "fidelity",
    "slices",
    "calibration",
    "security",
]


def report(family: str) -> StressReport:
    return StressReport.model_validate_json((STRESS / f"{family}.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("digits")
def test_a_family_writes_its_report_and_plot_with_the_same_bytes_again(family: str) -> None:
    run(["student", family])
    first = tree_sha256(STRESS)
    run(["student", family])
    assert tree_sha256(STRESS) == first
    assert {f"{family}.json", f"{family}/plot.png"} <= set(first)
    found = report(family)
    assert (found.student, found.family, found.error) == ("student", family, None)
    assert found.model_sha256 == sha256(Path("ship/student/model.onnx"))
    assert found.gates
    assert all(isinstance(v, int | float) for v in found.results["summary"].values())
    assert StressReport.model_validate(found.model_dump(mode="json")) == found
    assert not list(STRESS.glob(".*"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("colour")
def test_a_family_takes_colour_images_of_any_size(family: str) -> None:
    run(["student", family])
    assert report(family).error is None


@pytest.mark.usefixtures("digits")
def test_kept_examples_are_written_as_parquet() -> None:
    run(["student", "adversarial"])
    run(["student", "fidelity"])
    kept = pq.read_table(STRESS / "adversarial/kept.parquet")
    assert kept.column_names == [
        "row", "label", "predicted", "norm", "epsilon", "attack", "pixels",
    ]  # fmt: skip
    assert str(kept.schema.field("pixels").type.value_type) == "float"
    assert pq.read_table(STRESS / "fidelity/flips.parquet").column_names == [
        "row", "label", "kind", "caused_by", "margin", "predicted",
    ]  # fmt: skip


@pytest.mark.usefixtures("digits")
def test_a_family_that_raises_reports_its_error_and_no_gates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object) -> Outcome:
        raise RuntimeError("out of luck\nsecond line")

    run(["student", "fidelity"])
    monkeypatch.setattr(tasks.stress.fidelity, "run", crash)
    run(["student", "fidelity"])
    found = report("fidelity")
    assert found.error == "RuntimeError: out of luck"
    assert found.gates == ()
    assert not found.passed
    assert [p.name for p in (STRESS / "fidelity").iterdir()] == ["plot.png"]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("failure", [MemoryError(), OSError(28, "No space left on device")])
def test_where_the_machine_fails_the_stage_fails_and_no_report_speaks_of_the_student(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def crash(*_: object) -> Outcome:
        raise failure

    monkeypatch.setattr(tasks.stress.fidelity, "run", crash)
    with pytest.raises(type(failure)):
        run(["student", "fidelity"])
    assert not (STRESS / "fidelity.json").exists()


def test_a_result_that_is_nan_is_an_error_too(digits) -> None:
    case = digits.case()
    sound = tasks.stress.fidelity.run(
        case, tasks.stress.fidelity.Params(agreement=0.5, negative_flips=0.5)
    )

    def half_known(*_: object) -> Outcome:
        return Outcome(3, {"kl": float("nan")}, sound.gates, sound.figure)

    found, outcome = examine(case, Family("fidelity", Section, half_known), Section())
    assert found.error is not None
    assert found.error.startswith("ValueError")
    assert (found.gates, outcome.gates) == ((), ())


@pytest.mark.parametrize("arguments", [[], ["student"], ["student", "fidelity", "more"]])
@pytest.mark.usefixtures("digits")
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ParamsError, match="STUDENT FAMILY"):
        run(arguments)


@pytest.mark.usefixtures("digits")
def test_an_unknown_family_is_refused_and_writes_nothing() -> None:
    with pytest.raises(ParamsError, match="did you mean 'fidelity'"):
        run(["student", "fidelitee"])
    assert not STRESS.exists()


@pytest.mark.usefixtures("digits")
def test_an_unknown_student_is_refused() -> None:
    with pytest.raises(DataError, match=r"ship/nobody/model\.onnx: no such file"):
        run(["nobody", "fidelity"])


@pytest.mark.usefixtures("digits")
def test_a_float_student_that_was_changed_is_refused() -> None:
    path = Path("ship/student/float.safetensors")
    save_file({k: v + 1 for k, v in load_file(path).items()}, path)
    with pytest.raises(DataError, match="is not the file that"):
        run(["student", "fidelity"])


@pytest.mark.usefixtures("digits")
def test_a_float_student_of_another_architecture_is_refused() -> None:
    path = Path("ship/student/float.json")
    spec = json.loads(path.read_text())
    spec["architecture"]["widths"] = [6, 9]
    path.write_text(json.dumps(spec))
    with pytest.raises(DataError, match="does not fit the network"):
        run(["student", "fidelity"])


@pytest.mark.usefixtures("digits")
def test_predictions_of_other_rows_are_refused() -> None:
    path = Path("reports/teacher/predictions.parquet")
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match="predictions of other rows"):
        run(["student", "fidelity"])


@pytest.mark.usefixtures("digits")
def test_missing_predictions_are_refused() -> None:
    Path("reports/teacher/predictions.parquet").unlink()
    with pytest.raises(DataError, match=r"predictions\.parquet: no such file; run evaluate"):
        run(["student", "fidelity"])


def test_the_sample_is_seeded_sorted_and_never_longer_than_the_table(digits) -> None:
    case = digits.case()
    sample = case.sample(50)
    assert len(set(sample)) == 50
    assert list(sample) == sorted(sample)
    assert list(sample) == list(digits.case().sample(50))
    assert set(sample) != set(range(50))
    assert len(case.sample(10_000)) == len(case.test)


@pytest.mark.usefixtures("digits")
def test_a_teacher_in_onnx_is_put_beside_the_student() -> None:
    folder = Path("models/teacher")
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "model.onnx").write_bytes(Path("ship/student/model.onnx").read_bytes())
    (folder / "weights.safetensors").unlink()
    spec |= {"kind": "onnx", "architecture": None, "normalisation": None,
             "sha256": sha256(folder / "model.onnx")}  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))
    run(["student", "adversarial"])
    assert report("adversarial").results["teacher_attack"] == "square"

"""`python -m tasks.judge STUDENT`, whole, in a small world."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tasks.core.errors import DataError, ParamsError
from tasks.core.files import read_json, sha256, tree_sha256, write_json
from tasks.core.reports import StressReport
from tasks.judge.__main__ import run
from tasks.judge.subject import subject
from tasks.judge.verdict import read_verdict

VERDICT = Path("reports/student/verdict.json")
EVIDENCE = Path("evidence/student")


def test_a_good_student_is_approved_by_every_gate(world: Path) -> None:
    run(["student"])
    verdict = read_verdict(VERDICT)

    assert verdict.approved
    assert {gate.name for gate in verdict.gates} == {
        "accuracy",
        "bytes",
        "non_inferior_to_teacher",
        "macro_f1",
        "class_regression",
        "better_than_baseline",
        "compression_validated",
        "teacher_requirement",
        "data_validation",
        "parity",
        "portability",
        "valid_rows",
        "stress.adversarial.held",
        "stress.corruptions.held",
        "stress.edge_cases.held",
        "stress.fidelity.held",
        "stress.slices.held",
        "stress.calibration.held",
        "stress.security.held",
    }
    assert verdict.student.sha256 == sha256(world / "ship/student/model.onnx")
    assert verdict.student.bytes == (world / "ship/student/model.onnx").stat().st_size
    assert verdict.retention > 0.97
    assert verdict.compression == pytest.approx(verdict.teacher.parameters / 240, abs=1e-5)
    assert verdict.compression_bytes == pytest.approx(
        verdict.teacher.bytes / verdict.student.bytes, abs=1e-5
    )


def test_the_chain_runs_from_teacher_to_shipped_student(world: Path) -> None:
    run(["student"])
    chain = read_verdict(VERDICT).chain

    assert [link.role for link in chain] == ["teacher", "rung", "float_student", "student"]
    assert [link.split for link in chain] == ["test", "val", "test", "test"]
    assert [link.parameters for link in chain][1:] == [1000, 240, 240]
    assert chain[2].step == pytest.approx(1000 / 240, abs=1e-5)
    assert chain[-1].bytes == (world / "ship/student/model.onnx").stat().st_size


def test_measured_figures_name_every_stage_and_stand_apart(world: Path) -> None:
    run(["student"])
    measured = read_verdict(VERDICT).measured

    assert measured is not None
    assert measured.cpu_seconds == {
        "teacher": 10.5,
        "assistant": 5,
        "student": 2,
        "quantize-student": 1,
    }
    assert min(measured.latency_ms.model_dump().values()) > 0
    assert [gate.name for gate in measured.gates] == ["latency_ms"]
    assert "measured" not in read_json(world / EVIDENCE / "verdict.json")
    assert "1000 ms are allowed" in measured.gates[0].why
    shown = f"{measured.runtime['student'].rows_per_second:,.0f}"
    assert shown in Path("reports/student/card.md").read_text()
    assert "rows a second" not in (EVIDENCE / "card.md").read_text()


def test_two_builders_get_the_same_evidence_and_the_same_verdict_but_for_measured(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "another place"
    shutil.copytree(world, other)
    write_json(other / "measured" / "teacher.json", {"cpu": {}, "cpu_seconds": 99.0})
    params = yaml.safe_load((other / "params.yaml").read_text())
    params["judge"]["watts"] = 99.0
    (other / "params.yaml").write_text(yaml.safe_dump(params))

    run(["student"])
    monkeypatch.chdir(other)
    run(["student"])

    assert tree_sha256(world / EVIDENCE) == tree_sha256(other / EVIDENCE)
    first, second = read_json(world / VERDICT), read_json(other / VERDICT)
    assert first.pop("measured") != second.pop("measured")
    assert first == second


def test_a_budget_that_this_machine_misses_refuses_but_leaves_the_evidence_as_it_is(
    world: Path,
) -> None:
    run(["student"])
    before = subject(world / EVIDENCE).files
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["requirements"]["latency_ms"] = 1e-6
    Path("params.yaml").write_text(yaml.safe_dump(params))

    run(["student"])
    verdict, after = read_verdict(VERDICT), subject(world / EVIDENCE).files
    told = Path("reports/student/card.md").read_text()

    assert not verdict.approved
    assert [gate.name for gate in verdict.failed] == ["latency_ms"]
    assert read_json(EVIDENCE / "verdict.json")["approved"]
    assert "**Refused** by `latency_ms`" in told
    assert "| `latency_ms` | **FAIL** |" in told
    # The sealed card states the budget; nothing else may differ.
    assert {name for name in before if before[name] != after[name]} == {"card.md"}


def test_evidence_holds_what_the_contract_names_and_its_digests_hold(world: Path) -> None:
    run(["student"])
    found = subject(world / EVIDENCE)

    assert read_json(EVIDENCE / "subject.json") == found.model_dump(mode="json")
    assert set(found.files) == {
        "model.onnx",
        "spec.json",
        "card.md",
        "gates.png",
        "verdict.json",
        "predictions.parquet",
        "certificate.json",
        "data.json",
        "stress/adversarial.json",
        "stress/adversarial/plot.png",
        "stress/calibration.json",
        "stress/calibration/plot.png",
        "stress/corruptions.json",
        "stress/corruptions/plot.png",
        "stress/edge_cases.json",
        "stress/edge_cases/plot.png",
        "stress/fidelity.json",
        "stress/fidelity/plot.png",
        "stress/slices.json",
        "stress/slices/plot.png",
        "stress/security.json",
        "stress/security/plot.png",
    }
    assert read_json(EVIDENCE / "data.json")["fingerprint"]["digest"] == "d" * 64
    assert read_json(EVIDENCE / "data.json")["set_aside"] == {"label issue": 1}
    assert [p.name for p in (world / "evidence").iterdir()] == ["student"]


def test_evidence_keeps_raw_predictions_that_give_the_stated_accuracy(world: Path) -> None:
    run(["student"])
    table = pq.read_table(world / EVIDENCE / "predictions.parquet")
    student = np.array(table["student"].to_pylist())
    right = (student.argmax(axis=1) == table["label"].to_numpy()) & table["valid"].to_numpy()

    assert table.column_names == ["row", "label", "teacher", "student", "valid"]
    assert right.mean() == pytest.approx(read_verdict(VERDICT).chain[-1].accuracy.value, abs=1e-6)


def test_evidence_is_made_anew_as_a_whole(world: Path) -> None:
    run(["student"])
    (EVIDENCE / "stress" / "left over.json").write_text("{}")

    run(["student"])

    assert not (EVIDENCE / "stress" / "left over.json").exists()
    assert (world / EVIDENCE / "subject.json").is_file()


def test_the_subject_speaks_of_every_byte_and_every_name(world: Path) -> None:
    run(["student"])
    before = subject(world / EVIDENCE)

    (EVIDENCE / "card.md").write_text("perfect")
    changed = subject(world / EVIDENCE)
    (EVIDENCE / "card.md").rename(EVIDENCE / "praise.md")
    renamed = subject(world / EVIDENCE)

    assert len({before.digest, changed.digest, renamed.digest}) == 3
    assert read_json(EVIDENCE / "subject.json") == before.model_dump(mode="json")


def test_a_stress_report_about_another_file_refuses_the_student(
    world: Path, report: Callable[..., StressReport]
) -> None:
    foreign = report("fidelity", "f" * 64)
    write_json(world / "reports/student/stress/fidelity.json", foreign.model_dump(mode="json"))

    run(["student"])
    verdict = read_verdict(VERDICT)

    assert not verdict.approved
    # Overall compression above 10:1 stands on the stress families, so it falls with them.
    assert {g.name for g in verdict.failed} == {"stress.fidelity", "compression_validated"}
    assert "another file" in Path(EVIDENCE / "card.md").read_text()


def test_a_family_that_did_not_report_refuses_the_student(world: Path) -> None:
    (world / "reports/student/stress/corruptions.json").unlink()

    run(["student"])

    assert "stress.corruptions" in {g.name for g in read_verdict(VERDICT).failed}
    assert not (EVIDENCE / "stress" / "corruptions.json").exists()
    assert (EVIDENCE / "stress" / "fidelity.json").exists()


def test_a_refused_student_ends_the_stage_well_and_is_told_why(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(world / "ship/student/parity.json", {"passed": False})

    run(["student"])

    assert "student refused" in (said := capsys.readouterr().out)
    assert "failed parity" in said
    assert "**Refused** by `parity`" in (EVIDENCE / "card.md").read_text()


def test_a_shipped_file_that_its_spec_does_not_name_stops_the_stage(world: Path) -> None:
    (world / "ship/student/model.onnx").write_bytes(b"something else")

    with pytest.raises(DataError, match="is not the file that"):
        run(["student"])
    assert not VERDICT.exists()


def test_predictions_of_other_rows_stop_the_stage(world: Path) -> None:
    path = world / "reports/teacher/predictions.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)

    with pytest.raises(DataError, match="predictions of other rows"):
        run(["student"])


@pytest.mark.parametrize("arguments", [[], ["student", "teacher"], ["../student"]])
def test_a_student_that_does_not_ship_is_refused(world: Path, arguments: list[str]) -> None:
    assert world.is_dir()
    with pytest.raises(ParamsError, match=r"exactly one student|none of distill\.ship"):
        run(arguments)


def test_the_consumer_in_the_card_runs_with_nothing_but_onnxruntime_and_numpy(
    world: Path,
) -> None:
    run(["student"])
    code = (EVIDENCE / "card.md").read_text().split("```python\n")[1].split("```")[0]
    call = (
        "import sys\n" + code + "\nimages = np.full((2, 3, 4, 5), 128, np.float32)\n"
        "print(predict(images), 'torch' in sys.modules)\n"
        "images[1] = np.nan\n"
        "try:\n    predict(images)\nexcept ValueError as error:\n    print(error)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", call],
        cwd=world / EVIDENCE,
        capture_output=True,
        text=True,
        check=True,
    )

    first, second = done.stdout.splitlines()
    assert first.endswith("False")
    assert second == "rows [1]: not all in 0 .. 255"


def test_a_verdict_that_was_turned_by_hand_is_refused(world: Path) -> None:
    write_json(world / "ship/student/parity.json", {"passed": False})
    run(["student"])
    content = json.loads(VERDICT.read_text())
    content["approved"] = True
    write_json(VERDICT, content)

    with pytest.raises(ParamsError, match="contradicts the gates"):
        read_verdict(VERDICT)

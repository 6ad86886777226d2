"""Portability before the judge: the certificate's gate, and the trial on an emulated CPU.

The negative control is a file whose answers change where pairs of products saturate.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tasks.core.files import read_json, sha256, write_bytes, write_json
from tasks.core.session import open_session, score
from tasks.judge.__main__ import run
from tasks.judge.case import Case, scored
from tasks.judge.chain import conclude
from tasks.judge.gates import decide
from tasks.judge.params import JudgeParams, Requirements
from tasks.judge.portability import Certificate, portability, read_certificate
from tasks.judge.trial import CPUS, EMULATOR, attempt, emulate, other_cpu, with_trial
from tasks.judge.verdict import Latency, Measured, Trial, read_verdict
from tasks.quantize.certificate import certificate

emulated = pytest.mark.skipif(
    shutil.which(EMULATOR) is None, reason=f"{EMULATOR} (Debian's qemu-user) is not installed"
)
SHAPE = (3, 4, 5)
WEIGHTS = np.zeros((60, 4), np.int8)
WEIGHTS[:, 0] = 127  # every pair of a bright image saturates
WEIGHTS[::2, 1] = 127  # no pair does, and half of the sum is left
SCALES = np.array([1, 1.5, 1, 1], np.float32)  # exact: 0 wins; with saturation: 1


def saturating() -> bytes:
    """A student of the judge's world in int8 whose heaviest pairs leave int16."""
    stored = {
        "flat": np.array([0, 60], np.int64),
        "one": np.float32(1),
        "zero": np.uint8(0),
        "w": WEIGHTS,
        "scales": SCALES,
        "zeros": np.zeros(4, np.int8),
        "low": np.float32(0),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["input", "flat"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["b"], axis=1),
        helper.make_node("MatMul", ["a", "b"], ["logits"]),
        helper.make_node("GreaterOrEqual", ["x", "low"], ["above"]),
        helper.make_node("ReduceMin", ["above", "axis"], ["valid"], keepdims=0),
    ]
    made = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("valid", TensorProto.BOOL, ["batch"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def exact(images: NDArray[np.generic]) -> NDArray[np.float32]:
    """The logits of `saturating()` in integers that never saturate."""
    sums = images.reshape(len(images), -1).astype(np.int64) @ WEIGHTS
    return (sums * SCALES).astype(np.float32)


def bright(count: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(240, 256, (count, *SHAPE)).astype(np.uint8)


@pytest.fixture
def trying(world: Path) -> Path:
    """The world, whose stage tries 20 rows."""
    params = yaml.safe_load((world / "params.yaml").read_text())
    params["judge"]["trial_rows"] = 20
    (world / "params.yaml").write_text(yaml.safe_dump(params))
    return world


@pytest.fixture
def measured() -> Measured:
    latency = Latency(teacher=3.0, float_student=1.0, student=0.5)
    return Measured(cpu={}, latency_ms=latency, cpu_seconds={}, gates=())


@emulated
def test_a_layer_that_saturates_is_caught_by_the_proof_and_by_the_trial(tmp_path: Path) -> None:
    content = saturating()
    write_bytes(tmp_path / "model.onnx", content)
    images = bright(8)

    proof = Certificate.model_validate(certificate(content))
    answers = emulate(tmp_path / "model.onnx", images, "Haswell")

    assert [(layer.op, layer.unsafe, layer.highest) for layer in proof.layers] == [
        ("MatMul", 1, 2 * 127 * 255)
    ]
    assert not portability(proof).passed
    assert not isinstance(answers, str), answers
    logits, valid = answers
    assert valid.all()
    assert (exact(images).argmax(1) == 0).all()
    assert (logits.argmax(1) == 1).all()
    assert (logits[:, 0] == 30 * 32767).all()
    np.testing.assert_allclose(logits[:, 1:], exact(images)[:, 1:], rtol=1e-6)


@emulated
def test_without_avx2_the_same_file_adds_exactly(tmp_path: Path) -> None:
    """One file, two CPUs, two answers: it is the emulated one that answers."""
    write_bytes(tmp_path / "model.onnx", saturating())
    images = bright(8)

    answers = emulate(tmp_path / "model.onnx", images, "Nehalem")

    assert not isinstance(answers, str), answers
    np.testing.assert_allclose(answers[0], exact(images), rtol=1e-6)


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        (["avx2"], "Nehalem"),
        (["avx2", "avx512f"], "Nehalem"),
        (["avx2", "avx512f", "avx512_vnni"], "Haswell"),
        (["avx2", "avx_vnni"], "Haswell"),
        ([], "Haswell"),
    ],
)
def test_the_other_cpu_is_one_that_adds_otherwise(
    isa: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.judge.trial.cpu", lambda: {"isa": isa})

    assert other_cpu() == expected


@emulated
def test_another_answer_on_another_cpu_refuses_the_student(
    case: Case, judge: JudgeParams, requirements: Requirements, measured: Measured
) -> None:
    """Whether it is this CPU that saturates or the other one."""
    write_bytes(case.file, saturating())
    test = replace(case.test, images=bright(len(case.test)))
    logits, valid = score(open_session(case.file), test.images)
    here = replace(case, test=test, shipped=scored(logits, test.labels, valid))

    trial = attempt(here, 30)
    verdict = conclude(
        case, judge, decide(case, judge, requirements), None, with_trial(measured, trial)
    )

    assert (trial.tried, trial.rows, trial.different) == (True, 30, 30)
    assert trial.largest_difference is not None
    assert trial.largest_difference > 1e5
    assert [gate.name for gate in verdict.failed] == ["portability_trial"]
    assert verdict.reproducible().approved


def test_logits_that_are_not_finite_are_no_crash(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.full_like(case.shipped.logits[:5], np.nan)
    answers = (logits, np.ones(5, dtype=bool))
    monkeypatch.setattr("tasks.judge.trial.emulate", lambda *_: answers)

    trial = attempt(case, 5)

    assert (trial.tried, trial.different, trial.largest_difference) == (True, 5, None)
    assert "is not finite" in trial.why


@emulated
def test_the_trial_takes_the_rows_of_the_smallest_hashes(case: Case) -> None:
    """Whatever the table's order: only the first five in order of hashes are spoilt here."""
    order = np.random.default_rng(0).permutation(len(case.test))
    turned = case.test.take(order)
    logits = case.shipped.logits[order].copy()
    first = np.argsort(turned.rows)[:5]
    logits[first] = -logits[first]
    there = replace(case, test=turned, shipped=scored(logits, turned.labels))

    assert attempt(there, 5).different == 5
    assert attempt(there, 12).different == 5
    assert attempt(there, 10_000).rows == len(case.test)


@emulated
def test_a_portable_student_is_tried_and_only_the_measured_part_says_so(
    trying: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["student"])
    verdict = read_verdict(Path("reports/student/verdict.json"))
    told, sealed = (Path(p, "card.md").read_text() for p in ("reports/student", "evidence/student"))

    assert verdict.approved
    assert verdict.measured is not None
    assert [gate.name for gate in verdict.measured.gates] == ["latency_ms", "portability_trial"]
    trial = verdict.measured.portability
    assert trial is not None
    assert (trial.tried, trial.cpu, trial.rows, trial.different) == (True, other_cpu(), 20, 0)
    assert trial.largest_difference is not None
    assert trial.largest_difference < 1e-3
    assert f"emulated {other_cpu()} ({CPUS[other_cpu()]}) answers 0 of them" in told
    assert "emulated" not in sealed
    assert "emulated" not in (trying / "evidence/student/verdict.json").read_text()
    assert "Tried on 20 test rows" in capsys.readouterr().out


def test_without_an_emulator_nothing_is_called_passed(
    trying: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(trying))

    run(["student"])
    verdict = read_verdict(Path("reports/student/verdict.json"))

    assert verdict.approved
    assert verdict.measured is not None
    assert [gate.name for gate in verdict.measured.gates] == ["latency_ms"]
    trial = verdict.measured.portability
    assert trial is not None
    assert (trial.tried, trial.rows, trial.different) == (False, 0, None)
    said = "Not tried on another CPU: "
    assert trial.why.startswith(said)
    assert said in Path("reports/student/card.md").read_text()


def test_no_rows_mean_no_trial(case: Case, measured: Measured) -> None:
    trial = attempt(case, 0)

    assert trial.why == "Not tried on another CPU: judge.trial_rows is 0."
    assert with_trial(measured, trial).gates == ()


@emulated
def test_an_emulated_run_that_fails_is_no_trial_and_tells_why(tmp_path: Path) -> None:
    write_bytes(tmp_path / "model.onnx", b"no model")

    said = emulate(tmp_path / "model.onnx", bright(1), "Haswell")

    assert isinstance(said, str)
    assert "the emulated Haswell failed" in said
    assert "not a valid ONNX file" in said


def test_the_certificate_is_a_gate_and_part_of_the_evidence(
    world: Path, case: Case, onnx_student: Callable[..., bytes]
) -> None:
    folder = world / "ship/student"
    assert portability(case.certificate).passed
    assert "No layer runs in int8" in portability(case.certificate).why

    write_bytes(folder / "model.onnx", saturating())
    write_json(folder / "certificate.json", certificate(saturating()))
    gate = portability(read_certificate(folder, sha256(folder / "model.onnx")))
    assert not gate.passed
    assert gate.value == 1
    assert "MatMul logits (1 of 4 channels)" in gate.why

    run_on = onnx_student()
    write_bytes(folder / "model.onnx", run_on)
    of_another = portability(read_certificate(folder, sha256(folder / "model.onnx")))
    assert (of_another.passed, of_another.value) == (False, None)
    assert "another file" in of_another.why


def test_a_file_that_was_made_for_one_kind_of_cpu_passes_and_says_so() -> None:
    gate = portability(Certificate.model_validate(certificate(saturating(), "x86-vnni")))

    assert gate.passed
    assert "may saturate on CPUs without VNNI in MatMul logits (1 of 4 channels)" in gate.why
    assert gate.why.endswith("It was made for x86-vnni alone.")


@pytest.mark.parametrize("target", ["x86-avx2", "arm64"])
def test_a_file_that_saturates_is_refused_where_it_is_judged(target: str) -> None:
    gate = portability(Certificate.model_validate(certificate(saturating(), target)))

    assert not gate.passed


def test_a_trial_decides_only_where_every_cpu_must_answer_alike(measured: Measured) -> None:
    trial = Trial(tried=True, cpu="Haswell", rows=9, different=3, why="Tried.")

    told = with_trial(measured, trial, decides=False)

    assert (told.portability, told.gates) == (trial, ())
    assert [gate.passed for gate in with_trial(measured, trial).gates] == [False]


def test_an_unportable_student_is_refused_by_the_sealed_verdict(world: Path) -> None:
    path = world / "ship/student/certificate.json"
    stated = certificate(saturating()) | {"model_sha256": read_json(path)["model_sha256"]}
    write_json(path, stated)

    run(["student"])

    assert [g.name for g in read_verdict(Path("reports/student/verdict.json")).failed] == [
        "portability"
    ]
    assert not read_json(Path("evidence/student/verdict.json"))["approved"]
    sealed = Path("evidence/student/card.md").read_text()
    assert "## Portability\n\nSums of two products may saturate on CPUs without VNNI in" in sealed
    assert read_json(Path("evidence/student/certificate.json")) == stated


@pytest.mark.parametrize("spoil", ["gone", "broken", "turned", "raised"])
def test_a_certificate_that_cannot_be_believed_fails(world: Path, case: Case, spoil: str) -> None:
    path = world / "ship/student/certificate.json"
    stated = certificate(saturating()) | {"model_sha256": case.spec.sha256}
    if spoil == "gone":
        path.unlink()
    elif spoil == "broken":
        path.write_text("{")
    elif spoil == "turned":
        write_json(path, stated | {"portable": True})
    else:
        safe = {**stated["layers"][0], "safe": True}  # type: ignore[index,dict-item,call-overload]
        write_json(path, stated | {"layers": [safe]})

    gate = portability(read_certificate(path.parent, case.spec.sha256))

    assert (gate.passed, gate.value) == (False, None)
    assert gate.why.startswith("There is no certificate to believe: ")

"""A small world for the judge: four classes of 3×4×5 images, a teacher, and a linear ONNX student.

Everything is written by hand as the stages would write it; only the judge itself is real. The
student knows the true prototypes, so it beats a regression on forty rows.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper

from tasks.core.cost import cpu
from tasks.core.files import sha256, write_bytes, write_json
from tasks.core.models import (
    Architecture,
    ModelSpec,
    Normalisation,
    Origin,
    parameters,
    write_spec,
    write_weights,
)
from tasks.core.reports import Gate, StressReport, at_least
from tasks.core.tables import QUARANTINE, Fingerprint, Schema, Split, Table, write_table
from tasks.distill.params import DistillParams
from tasks.judge.case import Case, read_case
from tasks.judge.costs import operations
from tasks.judge.params import (
    Distillation,
    JudgeParams,
    Quantization,
    Requirements,
    Teaching,
)
from tasks.judge.verdict import Costs
from tasks.modalities.vision.networks import build
from tasks.quantize.certificate import certificate

FAMILIES = (
    "adversarial",
    "corruptions",
    "edge_cases",
    "fidelity",
    "slices",
    "calibration",
    "security",
)
DATA = Schema(
    modality="vision",
    shape=(3, 4, 5),
    dtype="uint8",
    range=(0, 255),
    classes=("ant", "bee", "cow|", "dog"),
)
SIZE = 60
PROTOTYPES = np.random.default_rng(0).normal(size=(4, SIZE))
RUNG: dict[str, Any] = {
    "from": "teacher",
    "architecture": {"widths": [4]},
    "training": {"epochs": 1, "learning_rate": 0.1},
}
PARAMS: dict[str, Any] = {
    "name": "animals",
    "threads": 1,
    "distill": {
        "ship": ["student"],
        "rungs": {
            "assistant": RUNG | {"losses": {"cross_entropy": 0.1, "kd": 0.9}},
            "student": RUNG | {"from": "assistant", "losses": {"kd": 1.0}, "temperature": 2.0},
        },
    },
    "teach": {"training": {"epochs": 4}, "views": {"count": 3}},
    "quantize": {"schemes": ["float32", "static", "qat"], "qat": {"epochs": 2}},
    "stress": {"families": list(FAMILIES)},
    "judge": {
        "confidence": 0.95,
        "margin": 0.03,
        "macro_f1_margin": 0.05,
        "class_margin": 0.05,
        "bootstrap": 200,
        "seed": 0,
        "trial_rows": 0,
    },
    "requirements": {
        "teacher_accuracy": 0.95,
        "accuracy": 0.9,
        "bytes": 65536,
        "latency_ms": 1000.0,
    },
}


def table(count: int, seed: int) -> Table:
    """Rows of the four classes in turn, in the order of their hashes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    values = 128 + 14 * PROTOTYPES[labels] + 26 * generator.normal(size=(count, SIZE))
    images = np.clip(values, 0, 255).astype(np.uint8).reshape(-1, *DATA.shape)
    rows = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    order = np.argsort(rows)
    return Table(rows[order], labels[order].astype(np.int64), images[order])


def linear_onnx(weights: np.ndarray, low: float = 0, high: float = 255) -> bytes:
    """logits = (x - 128) @ weights.T, and `valid` as every shipped file has it."""
    values = {
        "flat": np.array([0, SIZE], np.int64),
        "centre": np.array(128, np.float32),
        "weights": np.ascontiguousarray(weights.T, np.float32),
        "low": np.array(low, np.float32),
        "high": np.array(high, np.float32),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["input", "flat"], ["x"]),
        helper.make_node("Sub", ["x", "centre"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["logits"]),
        helper.make_node("GreaterOrEqual", ["x", "low"], ["above"]),
        helper.make_node("LessOrEqual", ["x", "high"], ["below"]),
        helper.make_node("And", ["above", "below"], ["inside"]),
        helper.make_node("Cast", ["inside"], ["number"], to=TensorProto.INT32),
        helper.make_node("ReduceMin", ["number", "axis"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["valid"], to=TensorProto.BOOL),
    ]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *DATA.shape])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("valid", TensorProto.BOOL, ["batch"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def spec(name: str, kind: Any, size: int, digest: str, **more: Any) -> ModelSpec:
    """A spec with the facts that matter here."""
    given = {"architecture": None, "normalisation": None, "flops": 2 * size} | more
    return ModelSpec(
        name=name, kind=kind, data=DATA, parameters=size, bytes=4 * size, sha256=digest, **given
    )


def rung(name: str, size: int, above: str | None, lineage: list[dict[str, Any]]) -> dict[str, Any]:
    """A rung's report as distill writes it."""
    return {
        "format": "stillhouse/rung/1",
        "name": name,
        "learned_from": above,
        "parameters": size,
        "flops": 2 * size,
        "bytes": 4 * size,
        "retention": 0.99 if above else None,
        "compression": 3.0 if above else None,
        "lineage": lineage,
        "val_accuracy": {"value": 0.97, "low": 0.95, "high": 0.985},
    }


def stress_report(family: str, digest: str, **changes: Any) -> StressReport:
    """A family that passed."""
    both = {
        "teacher": {"value": 0.9, "low": 0.87, "high": 0.93},
        "student": {"value": 0.7, "low": 0.66, "high": 0.74},
    }
    results: dict[str, Any] = {
        "adversarial": {"epsilons": [{"epsilon": 0.01, **both}]},
        "corruptions": {"kinds": {"fog_bank": {"severities": [both]}}},
        "slices": {
            "found": [{"where": "ink > 0.25", "rows": 36, **both}],
            "subgroups": {"camera": [{"where": "camera = old", "rows": 40, **both}]},
        },
    }.get(family, {})
    given: dict[str, Any] = {
        "student": "student",
        "family": family,
        "model_sha256": digest,
        "rows": 100,
        "results": {**results, "summary": {"kept_accuracy": 0.875}},
        "gates": (at_least(f"{family}.held", 0.9, 0.8, "It held."),),
    }
    return StressReport(**(given | changes))


def write_world(root: Path) -> None:
    """Every file that the judge reads, below `root`."""
    splits = {"train": table(40, 1), "val": table(40, 2), "test": table(400, 3)}
    for split, rows in splits.items():
        write_table(root / "data" / f"{split}.parquet", rows)
    fingerprint = Fingerprint(
        format="stillhouse/fingerprint/1",
        data=DATA,
        snapshot="0" * 64,
        mean=128,
        std=30,
        digest="d" * 64,
        splits={
            split: Split(
                rows=len(rows),
                sha256=sha256(root / "data" / f"{split}.parquet"),
                per_class={c: int((rows.labels == i).sum()) for i, c in enumerate(DATA.classes)},
            )
            for split, rows in splits.items()
        },
    )
    write_json(root / "data" / "fingerprint.json", fingerprint.model_dump(mode="json"))
    aside = {
        "split": ["train"],
        "position": [3],
        "row": [str(splits["train"].rows[3])],
        "label": ["bee"],
        "reason": ["label issue"],
        "detail": ["looks like a cow"],
    }
    pq.write_table(pa.table(aside, schema=QUARANTINE), root / "data" / "quarantine.parquet")

    torch.manual_seed(0)
    architecture, norm = Architecture(widths=(8, 16)), Normalisation(mean=128, std=30)
    state = build(architecture, DATA, norm).state_dict()
    digest = write_weights(root / "models" / "teacher" / "weights.safetensors", state)
    teacher = spec(
        "teacher",
        "torch",
        parameters(state),
        digest,
        architecture=architecture,
        normalisation=norm,
        fingerprint="d" * 64,
    )
    write_spec(root / "models" / "teacher", teacher)

    test = splits["test"]
    logits = (test.images.reshape(-1, SIZE) - 128.0) @ PROTOTYPES.T
    predictions = {
        "row": test.rows.tolist(),
        "label": test.labels.tolist(),
        "logits": pa.FixedSizeListArray.from_arrays(
            pa.array(logits.astype(np.float32).reshape(-1)), 4
        ),
    }
    (root / "reports" / "teacher").mkdir(parents=True)
    pq.write_table(pa.table(predictions), root / "reports" / "teacher" / "predictions.parquet")
    write_json(
        root / "reports" / "teacher" / "report.json",
        {"model_sha256": digest, "fingerprint": "d" * 64, "met": True, "requirement": 0.95},
    )
    write_json(root / "reports" / "validation" / "report.json", {"passed": True})

    ladder = [rung("teacher", teacher.parameters, None, []), rung("assistant", 1000, "teacher", [])]
    write_json(
        root / "models" / "student" / "report.json", rung("student", 240, "assistant", ladder)
    )

    ship = root / "ship" / "student"
    # The shipped weights are coarser than the float ones, as int8 weights are.
    write_bytes(ship / "model.onnx", linear_onnx(np.round(PROTOTYPES * 4) / 4))
    write_bytes(ship / "float.onnx", linear_onnx(PROTOTYPES))
    shipped = sha256(ship / "model.onnx")
    write_spec(
        ship,
        spec(
            "student", "onnx", 240, shipped, learned_from=Origin(name="assistant", sha256="a" * 64)
        ),
    )
    write_json(ship / "parity.json", {"passed": True})
    write_json(ship / "certificate.json", certificate((ship / "model.onnx").read_bytes()))
    write_json(ship / "frontier.json", {"chosen": "static", "why": "static: the fewest bytes."})
    for family in FAMILIES:
        folder = root / "reports" / "student" / "stress"
        write_json(
            folder / f"{family}.json", stress_report(family, shipped).model_dump(mode="json")
        )
        write_bytes(folder / family / "plot.png", f"plot of {family}".encode())
    for name, seconds in {
        "teacher": 10.5,
        "assistant": 5,
        "student": 2,
        "quantize-student": 1,
    }.items():
        bank = {} if name.startswith("quantize") else {"bank_cpu_seconds": 0.5}
        noted = {"cpu": cpu(), "cpu_seconds": seconds, **bank}
        write_json(root / "measured" / f"{name}.json", noted)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world, written once; copied by whoever changes it."""
    root = tmp_path_factory.mktemp("made")
    write_world(root)
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world to work in and to spoil."""
    root = tmp_path / "world"
    shutil.copytree(made, root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def case(world: Path) -> Case:
    """The student of the world before the judge."""
    assert world.is_dir()
    return read_case("student", FAMILIES)


@pytest.fixture
def judge() -> JudgeParams:
    return JudgeParams(**PARAMS["judge"])


@pytest.fixture
def requirements() -> Requirements:
    return Requirements(**PARAMS["requirements"])


@pytest.fixture
def distillation() -> Distillation:
    """What the judge reads of a section that the distill stage accepts."""
    DistillParams.model_validate(PARAMS["distill"])
    return Distillation.model_validate(PARAMS["distill"])


@pytest.fixture
def counted(distillation: Distillation) -> Callable[[Case], Costs]:
    """`counted(case)`: what the making took in floating-point operations, by these parameters."""
    teaching = Teaching.model_validate(PARAMS["teach"])
    quantize = Quantization.model_validate(PARAMS["quantize"])
    return lambda case: operations(case, teaching, distillation, quantize)


@pytest.fixture
def report() -> Callable[..., StressReport]:
    """`report(family, model_sha256, **changes)`: a family that passed, unless changed."""
    return stress_report


@pytest.fixture
def onnx_student() -> Callable[..., bytes]:
    """`onnx_student(sign=1, low=0, high=255)`: the linear student's file."""
    return lambda sign=1, low=0, high=255: linear_onnx(sign * PROTOTYPES, low, high)


@pytest.fixture
def gate() -> Callable[..., Gate]:
    """`gate(name, passed)`."""
    return lambda name, passed=True: at_least(name, 1.0 if passed else 0.0, 1.0, "A sentence.")

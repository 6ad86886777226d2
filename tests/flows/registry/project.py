"""A small project that has run: every file that tracking, seal and registry read, and its lock.

The student is a real ONNX file of 3x4x5 inputs and three classes, right on most of 200 test rows;
the evidence is digested by the judge's own code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from onnx import TensorProto, helper, numpy_helper

from flows.registry import register
from flows.seal import seal
from flows.state import Checkout
from flows.tracking import project
from tasks.core.cost import cpu
from tasks.core.files import sha256, write_json
from tasks.core.reports import at_least, at_most
from tasks.core.session import open_session, score
from tasks.core.tables import Table, write_table
from tasks.judge.evidence import subject
from tasks.judge.verdict import (
    Baseline,
    Latency,
    Link,
    Measured,
    Rate,
    ShippedStudent,
    Teacher,
    Verdict,
    as_json,
)
from tasks.stress.flips import flip_ledger

SHAPE, CLASSES, RANGE = (3, 4, 5), ("ash", "birch", "cedar"), (0.0, 16.0)
RATE = Rate(value=0.98, low=0.96, high=0.99)


def model_bytes(seed: int = 0, like: float = 0.0) -> bytes:
    """A linear student with the contract of a shipped file; `like`: mixed with the first one."""
    own, first = (
        np.random.default_rng(s).normal(size=(int(np.prod(SHAPE)), len(CLASSES))) for s in (seed, 0)
    )
    weights = ((1 - like) * own + like * first).astype(np.float32)
    constants = {
        "weights": weights,
        "low": np.float32(RANGE[0]),
        "high": np.float32(RANGE[1]),
        "axes": np.array([1, 2, 3]),
    }
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("GreaterOrEqual", ["input", "low"], ["above"]),
        helper.make_node("LessOrEqual", ["input", "high"], ["below"]),
        helper.make_node("And", ["above", "below"], ["both"]),
        helper.make_node("Cast", ["both"], ["number"], to=TensorProto.INT32),
        helper.make_node("ReduceMin", ["number", "axes"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["valid"], to=TensorProto.BOOL),
    ]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)]),
            helper.make_tensor_value_info("valid", TensorProto.BOOL, ["batch"]),
        ],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


ROWS = 200  # of the test table


def rows_of_the_test() -> Table:
    """Random images, labelled by the first student but for every fiftieth."""
    random = np.random.default_rng(2)
    images = random.uniform(*RANGE, size=(ROWS, *SHAPE)).astype(np.float32)
    logits, _ = score(open_session(model_bytes()), images)
    labels = logits.argmax(axis=1).astype(np.int64)
    labels[::50] = (labels[::50] + 1) % len(CLASSES)
    return Table(np.array([f"{i:064x}" for i in range(ROWS)]), labels, images)


def write_data(root: Path) -> None:
    """Test table, raw snapshot and fingerprint; the other tables only by name."""
    (root / "data/raw").mkdir(parents=True)
    (root / "data/raw/snapshot.json").write_text("{}")
    pq.write_table(pa.table({"row": ["a"]}), root / "data/train.parquet")
    write_table(root / "data/test.parquet", rows_of_the_test())
    schema = {"modality": "vision", "shape": SHAPE, "dtype": "float32", "range": RANGE}
    split = {"rows": ROWS, "per_class": {}, "sha256": sha256(root / "data/test.parquet")}
    content = {"format": "stillhouse/fingerprint/1", "data": schema | {"classes": CLASSES}}
    content |= {"snapshot": "5a" * 32, "splits": {"test": split}, "mean": 0.5, "std": 1.0}
    write_json(root / "data/fingerprint.json", content | {"digest": "da" * 32})


def verdict_of(model: Path, approved: bool) -> Verdict:
    """A verdict of the file `model`; a refused one missed its accuracy."""
    links: list[dict[str, Any]] = [
        {"name": "teacher", "role": "teacher", "parameters": 1800, "compression": 1.0},
        {"name": "student", "role": "student", "parameters": 180, "compression": 10.0},
    ]
    rest = {"split": "test", "accuracy": RATE, "flops": None, "bytes": 720, "retention": 1.0}
    return Verdict(
        approved=approved,
        gates=(
            at_least("accuracy", 0.96, 0.95 if approved else 0.97, "lower bound of accuracy"),
            at_most("bytes", 900, 1000, "the shipped file"),
        ),
        student=ShippedStudent(
            name="student",
            path="ship/student/model.onnx",
            sha256=sha256(model),
            bytes=model.stat().st_size,
            parameters=180,
            flops=360,
        ),
        teacher=Teacher(sha256="7e" * 32, bytes=7200, parameters=1800),
        chain=tuple(Link(**link, **rest, step=link["compression"]) for link in links),
        baseline=Baseline(accuracy=RATE, rows=100, features=60, loss_upper=-0.01),
        retention=0.995,
        compression=10.0,
        compression_bytes=8.0,
        loss_upper=0.01,
        margin_resolution=0.005,
        confidence=0.95,
        rows=400,
        weaker=(),
        measured=Measured(
            cpu=cpu(),
            latency_ms=Latency(teacher=0.9, float_student=0.3, student=0.2),
            cpu_seconds={"teacher": 3.5},
            gates=(at_most("latency_ms", 0.2, 2.0, "median"),),
        ),
    )


def write_history(path: Path, epochs: int) -> None:
    """The curves of a training."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"epoch": e, "loss": 1 / e, "val_accuracy": 1 - 0.1 / e, "learning_rate": 0.01}
        for e in range(1, epochs + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_kept(path: Path, model: Path, count: int = 4) -> None:
    """Kept adversarial examples, as the adversarial family records them."""
    random = np.random.default_rng(1)
    images = random.uniform(*RANGE, size=(count, *SHAPE)).astype(np.float32)
    logits, _ = score(open_session(model), images)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "row": [f"{i:064x}" for i in range(count)],
        "label": pa.array([0] * count, pa.int32()),
        "predicted": pa.array(logits.argmax(axis=1), pa.int32()),
        "epsilon": [0.01] * count,
        "attack": ["square"] * count,
        "pixels": pa.array(images.reshape(count, -1).tolist(), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), path)


def write_spec(folder: Path) -> None:
    """`spec.json` of the shipped student."""
    data = {
        "modality": "vision",
        "shape": SHAPE,
        "dtype": "float32",
        "range": RANGE,
        "classes": CLASSES,
    }
    spec = {"name": "student", "kind": "onnx", "parameters": 180, "bytes": 720, "data": data}
    write_json(folder / "spec.json", spec | {"sha256": sha256(folder / "model.onnx")})


def write_predictions(path: Path, model: Path) -> None:
    """What the student answers on the test rows, and a teacher that has all of them right."""
    test = rows_of_the_test()
    logits, _ = score(open_session(model), test.images)
    teacher = np.eye(len(CLASSES), dtype=np.float32)[test.labels]
    columns = {"row": test.rows.tolist(), "teacher": teacher.tolist(), "student": logits.tolist()}
    pq.write_table(pa.table(columns), path)


def write_flips(path: Path, model: Path) -> None:
    """The flip ledger of the student, as the family `fidelity` keeps it."""
    test = rows_of_the_test()
    logits, _ = score(open_session(model), test.images)
    says = {"teacher": test.labels, "student": logits.argmax(axis=1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(flip_ledger(test.rows, test.labels, says, np.zeros(len(test))), path)


def write_evidence(root: Path, verdict: Verdict) -> None:
    """`evidence/student/` and its subject."""
    folder = root / "evidence" / "student"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / "ship/student/model.onnx", folder / "model.onnx")
    shutil.copyfile(root / "ship/student/spec.json", folder / "spec.json")
    (folder / "card.md").write_text("# student\n")
    write_json(folder / "verdict.json", as_json(verdict.reproducible()))
    fingerprint = json.loads((root / "data/fingerprint.json").read_text())
    write_json(folder / "data.json", {"fingerprint": fingerprint, "set_aside": {}})
    write_predictions(folder / "predictions.parquet", folder / "model.onnx")
    write_kept(folder / "stress/adversarial/kept.parquet", folder / "model.onnx")
    write_flips(folder / "stress/fidelity/flips.parquet", folder / "model.onnx")
    (folder / "subject.json").unlink(missing_ok=True)
    write_json(folder / "subject.json", subject(folder).model_dump(mode="json"))


def judged(root: Path, approved: bool = True) -> None:
    """What the judge leaves: verdict and evidence."""
    verdict = verdict_of(root / "ship/student/model.onnx", approved)
    write_json(root / "reports/student/verdict.json", as_json(verdict))
    (root / "reports/student/card.md").write_text("# student, with its costs\n")
    write_evidence(root, verdict)


IGNORED = "/.dvc/\n/.stillhouse/\n/data/\n/models/\n/measured/\n/reports/\n/ship/\n/evidence/\n"
JUDGE = {"margin": 0.05, "macro_f1_margin": 0.05, "class_margin": 0.2, "seed": 0}
REQUIREMENTS = {"accuracy": 0.95, "bytes": 1000}
STRESS = {
    "families": ["adversarial"],
    "seed": 0,
    "adversarial": {"margin": 0.03},
    "slices": {"margin": 0.1},
}
PARAMS = {
    "name": "trees",
    "threads": 1,
    "distill": {"ship": ["student"]},
    "stress": STRESS,
    "judge": JUDGE,
    "requirements": REQUIREMENTS,
}
STAGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "ingest": (
        {"data.split": {"train": 0.6}},
        ["data/train.parquet", "data/test.parquet", "data/fingerprint.json"],
    ),
    "teach": ({"threads": 1, "teach": {"seed": 0}}, ["models/teacher", "measured/teacher.json"]),
    "distill@student": (
        {"threads": 1, "distill.rungs.student": {"temperature": 4.0}},
        ["models/student", "measured/student.json"],
    ),
    "stress@student-adversarial": (
        {"stress.seed": 0, "stress.adversarial": STRESS["adversarial"]},
        ["reports/student/stress/adversarial.json", "reports/student/stress/adversarial"],
    ),
    "judge@student": (
        {"judge": JUDGE, "requirements": REQUIREMENTS, "stress.families": STRESS["families"]},
        ["evidence/student", "reports/student/card.md", "reports/student/verdict.json"],
    ),
}


def lock(root: Path, judge: Mapping[str, Any] | None = None) -> None:
    """Write `dvc.lock` as DVC would for the files that lie there."""
    entries: dict[str, Any] = {}
    for stage, (params, outs) in STAGES.items():
        if stage.startswith("judge@"):
            params = {**params, **(judge or {})}
        entries[stage] = {
            "cmd": f"python -m tasks.{stage}",
            "params": {"params.yaml": params},
            "outs": [{"path": out, "hash": "md5", **_state(root / out)} for out in outs],
        }
    entries["ingest"]["deps"] = [
        {"path": "data/raw", "hash": "md5", **_state(root / "data/raw")},
    ]
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))


def _state(path: Path) -> dict[str, Any]:
    if path.is_file():
        content = path.read_bytes()
        return {"md5": hashlib.md5(content).hexdigest(), "size": len(content)}  # noqa: S324
    files = sorted(p for p in path.rglob("*") if p.is_file())
    listing = json.dumps([sha256(p) for p in files]).encode()
    name = hashlib.md5(listing).hexdigest() + ".dir"  # noqa: S324
    return {"md5": name, "size": sum(p.stat().st_size for p in files), "nfiles": len(files)}


def build(root: Path, approved: bool = True) -> None:
    """A whole project at `root`."""
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "ship/student").mkdir(parents=True)
    (root / "ship/student/model.onnx").write_bytes(model_bytes())
    write_spec(root / "ship/student")
    write_data(root)
    for name, epochs in (("teacher", 3), ("student", 5)):
        write_history(root / "models" / name / "history.jsonl", epochs)
        (root / "models" / name / "weights.safetensors").write_bytes(b"weights")
        write_json(root / "models" / name / "spec.json", {"parameters": 180})
        write_json(root / "measured" / f"{name}.json", {"cpu": cpu(), "cpu_seconds": 1.5})
    family = root / "reports/student/stress/adversarial"
    write_kept(family / "kept.parquet", root / "ship/student/model.onnx")
    (family / "plot.png").write_bytes(b"\x89PNG plot")
    gates = [at_most("adversarial.epsilon_0.01", 0.05, 0.1, "kept").model_dump(mode="json")]
    write_json(family.with_suffix(".json"), {"results": {"kept": 4}, "gates": gates})
    judged(root, approved)
    lock(root)


@dataclasses.dataclass(frozen=True)
class Project:
    """The project, and what its tests do to it."""

    checkout: Checkout

    @property
    def root(self) -> Path:
        return self.checkout.root

    def judged(self, approved: bool = True) -> None:
        judged(self.root, approved)

    def lock(self, **sections: Any) -> None:
        """As DVC leaves it; `sections`: other parameters of the judge."""
        lock(self.root, sections)

    def commit(self, text: str = "a tree") -> None:
        """Commit all that `.gitignore` leaves, in a repository that is made on first use."""
        if not (self.root / ".git").exists():
            (self.root / ".gitignore").write_text(IGNORED)
            (self.root / ".dvc").mkdir()
            (self.root / ".dvc/config").touch()
            self.git("init", "-q", "-b", "main")
            self.git("config", "user.name", "Ada")
            self.git("config", "user.email", "ada@localhost")
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", text)

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True)

    def run(self) -> int | None:
        """What `stillhouse run` does once the stages have written: the version, if approved."""
        run_id = project(self.checkout)
        return register(self.checkout, "student", seal(self.checkout, "student"), run_id)

    def registry(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that MLflow's registry holds, table by table."""
        tables = (
            "registered_models",
            "registered_model_tags",
            "registered_model_aliases",
            "model_versions",
            "model_version_tags",
        )
        with sqlite3.connect(self.checkout.state / "mlflow.db") as database:
            query = "SELECT * FROM {}"
            return {t: sorted(database.execute(query.format(t)), key=repr) for t in tables}

    def set_params(self, **sections: Any) -> None:
        """Replace whole sections of `params.yaml`."""
        path = self.root / "params.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections))

    def another_student(self, seed: int = 7, like: float = 0.0) -> None:
        """A retraining: other weights, judged anew; `like`: the share of the first one's."""
        (self.root / "ship/student/model.onnx").write_bytes(model_bytes(seed, like))
        write_spec(self.root / "ship/student")
        judged(self.root)
        lock(self.root)

    def write_history(self, model: str, epochs: int) -> None:
        write_history(self.root / "models" / model / "history.jsonl", epochs)

    def rows(self) -> dict[str, int]:
        """Rows of each MLflow table that runs, metrics or versions could double in."""
        tables = (
            "runs",
            "metrics",
            "params",
            "tags",
            "latest_metrics",
            "model_versions",
            "logged_models",
            "experiments",
        )
        with sqlite3.connect(self.checkout.state / "mlflow.db") as database:
            query = "SELECT count(*) FROM {}"
            return {t: database.execute(query.format(t)).fetchone()[0] for t in tables}

    def artifacts(self) -> list[str]:
        folder = self.checkout.state / "artifacts"
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())

    def runs(self, **tags: str) -> list[Any]:
        """Runs that are not deleted and carry these tags, named without `stillhouse.`."""
        from flows.store import opened

        with opened(self.checkout) as store:
            return store.runs({f"stillhouse.{k}": v for k, v in tags.items()})

"""The stress battery on the committed Fashion-MNIST students: how long it takes, how strong it is.

The families run as stages do: each in a process of its own, on one thread, two at a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import reference, stress_attacks
from benchmarks.clone import ROOT
from benchmarks.fashion_data import PRESET, table
from benchmarks.table import Row, row
from tasks.core.files import read_json, sha256, write_json
from tasks.core.metrics import correct
from tasks.core.models import (
    MODELS,
    WEIGHTS,
    ModelSpec,
    Origin,
    read_spec,
    write_spec,
    write_weights,
)
from tasks.core.params import read
from tasks.core.predictions import TEACHER, write_predictions
from tasks.core.seeds import deterministic
from tasks.core.subgroups import SUBGROUPS, write_subgroups
from tasks.core.tables import DATA, QUARANTINE, Fingerprint, Schema, Split, write_table
from tasks.modalities.vision.scorers import load_scorer
from tasks.stress import adversarial
from tasks.stress.budget import BUDGETS
from tasks.stress.case import load_case
from tasks.stress.params import read_params

COMMAND = "make bench-stress"
SLOTS = 2  # families at a time
STUDENT = "student"
ATTACKED = 1000  # rows of the robust student: more than in ci, for a bound that is closer


def run() -> list[Row]:
    """All rows of the table."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        standard, robust = Path(scratch) / "standard", Path(scratch) / "robust"
        world(standard, reference.STANDARD, PRESET)
        rows = battery(standard)
        world(robust, reference.ROBUST, PRESET.with_stem(f"{PRESET.stem}-robust"))
        rows += withstood(robust)
    return [*rows, *stress_attacks.run()]


def battery(folder: Path) -> list[Row]:
    """Every family of the preset, and what each took and found."""
    families = read(folder / "params.yaml")["stress"]["families"]
    began = time.perf_counter()
    with ThreadPoolExecutor(SLOTS) as slots:
        seconds = list(slots.map(lambda family: examined(folder, family), families))
    whole = time.perf_counter() - began
    rows = [row("whole battery, budget ci, two families at a time", whole / 60, "min", "<= 8",
                COMMAND)]  # fmt: skip
    for family, took in zip(families, seconds, strict=True):
        report = read_json(folder / "reports" / STUDENT / "stress" / f"{family}.json")
        gates = report["gates"]
        passed = sum(gate["passed"] for gate in gates)
        told = report["error"] or f"{passed} of {len(gates)} gates pass"
        rows.append(row(f"{family}, {report['rows']:,} rows: {told}", took, "s", "", COMMAND))
    return rows


def examined(folder: Path, family: str) -> float:
    """One family; the seconds that it took."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tasks.stress", STUDENT, family],
        cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return time.perf_counter() - began


def withstood(folder: Path) -> list[Row]:
    """What the whole ladder at a tenth of the range leaves of the robust student, as it ships."""
    with contextlib.chdir(folder):
        deterministic(0, threads=1)
        case = load_case(STUDENT, replace(BUDGETS["ci"], attacked=ATTACKED, look=ATTACKED), seed=0)
        clean = float(correct(case.student_logits, case.test.labels).mean())
        _, _, options = read_params("adversarial")
        assert isinstance(options, adversarial.Params)
        began = time.process_time()
        outcome = adversarial.run(case, options.model_copy(update={"linf": (0.1,), "l2": ()}))
        took = time.process_time() - began
    (line,) = outcome.results["epsilons"]
    held = sum(gate.passed for gate in outcome.gates)
    return [
        row("robust student, as shipped: test accuracy (10,000 rows)", clean, "", ">= 0.84",
            COMMAND),
        row(f"robust student at L-infinity 0.1, worst case: accuracy left of {outcome.rows} rows",
            line["student"]["value"], "", "", COMMAND),
        row("its lower bound (95 %)", line["student"]["low"], "", ">= 0.65", COMMAND),
        row("its teacher, by APGD alone", line["teacher"]["value"], "", "", COMMAND),
        row(f"robust student: {held} of {len(outcome.gates)} gates pass; CPU time", took, "s", "",
            COMMAND),
    ]  # fmt: skip


def world(folder: Path, kept: Path, preset: Path) -> None:
    """What `python -m tasks.stress student FAMILY` reads, of the references in `kept`."""
    folder.mkdir()
    shutil.copyfile(preset, folder / "params.yaml")
    data = read_spec(kept / STUDENT).data
    tables = {"train": table(test=False), "test": table(test=True)}
    splits = {}
    for name, rows in tables.items():
        path = folder / DATA / f"{name}.parquet"
        write_table(path, rows)
        splits[name] = Split(rows=len(rows), per_class={}, sha256=sha256(path))
    write_subgroups(folder / SUBGROUPS, tables["test"].rows.tolist(), {})
    write_table(folder / DATA / "strangers.parquet", tables["test"].take(np.arange(0)))
    none = {field.name: pa.array([], field.type) for field in QUARANTINE}
    pq.write_table(pa.table(none, schema=QUARANTINE), folder / DATA / "quarantine.parquet")
    write_json(
        folder / DATA / "fingerprint.json", fingerprint(data, splits).model_dump(mode="json")
    )
    teacher = whole(folder / MODELS / "teacher", kept, read_spec(kept / "teacher"))
    origin = Origin(name="teacher", sha256=teacher.sha256)
    student = read_spec(kept / STUDENT).model_copy(update={"learned_from": origin})
    spec = whole(folder / MODELS / STUDENT, kept, student)
    logits = load_scorer(folder / MODELS / "teacher")(tables["test"].images)
    write_predictions(folder / TEACHER, tables["test"], logits)
    ship = folder / "ship" / STUDENT
    ship.mkdir(parents=True)
    shutil.copyfile(kept / STUDENT / reference.SHIPPED, ship / "model.onnx")
    shutil.copyfile(folder / MODELS / STUDENT / WEIGHTS, ship / "float.safetensors")
    write_json(ship / "float.json", spec.model_dump(mode="json"))


def whole(folder: Path, kept: Path, spec: ModelSpec) -> ModelSpec:
    """A reference of `kept` with float32 weights in `folder`; its spec."""
    digest = write_weights(folder / WEIGHTS, reference.floats(kept, spec.name))
    spec = spec.model_copy(update={"sha256": digest})
    write_spec(folder, spec)
    return spec


def fingerprint(data: Schema, splits: dict[str, Split]) -> Fingerprint:
    """The page of these tables, as far as stress reads it."""
    return Fingerprint(
        format="stillhouse/fingerprint/1", data=data, snapshot="0", splits=splits,
        mean=0.0, std=1.0, digest="0",
    )  # fmt: skip

"""A small colour data set of odd shape, a briefly trained student, and its float export."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tasks.core.banking import write_bank
from tasks.core.files import sha256, write_json
from tasks.core.models import (
    WEIGHTS,
    Architecture,
    ModelSpec,
    Normalisation,
    parameters,
    write_spec,
    write_weights,
)
from tasks.core.rows import read_rows
from tasks.core.tables import (
    QUARANTINE,
    UNLABELLED,
    Fingerprint,
    Schema,
    Split,
    Table,
    write_table,
)
from tasks.modalities.vision.networks import ResidualNetwork, build, flops, folded
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views
from tasks.quantize.export import export

ROOT = Path(__file__).parents[2]
ARCHITECTURE = Architecture(widths=(4, 6), blocks=1)
NORM = Normalisation(mean=90.0, std=60.0)
VIEWS = Views(count=2, seed=0, shift=1, flip=False)
PARAMS = {
    "threads": 1,
    "teach": {"views": VIEWS.model_dump(), "bank": {}},
    "quantize": {
        "schemes": ["float32", "dynamic", "static", "qat"],
        "calibration": {"rows": 64, "method": "minmax"},
        "qat": {"epochs": 2, "batch": 32, "learning_rate": 0.001, "weight_decay": 0.0},
        "accuracy_drop": 0.1,
        "latency_margin": 2.0,
    },
    "requirements": {"latency_ms": 1000.0, "bytes": 65536},
}


@pytest.fixture(scope="session")
def data() -> Schema:
    return Schema(
        modality="vision",
        shape=(3, 16, 20),
        dtype="uint8",
        range=(0, 255),
        classes=("left", "middle", "right"),
    )


@pytest.fixture(scope="session")
def rows(data: Schema) -> Callable[[int, int], Table]:
    """`rows(count, seed)`: noise with a bright block whose place is the class."""

    def make(count: int, seed: int) -> Table:
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 140, (count, *data.shape)).astype(np.uint8)
        labels = rng.integers(0, 3, count)
        for image, label in zip(images, labels, strict=True):
            image[:, 4:12, 7 * label : 7 * label + 6] += np.uint8(rng.integers(30, 100))
        names = np.array([hashlib.sha256(i.tobytes()).hexdigest() for i in images])
        return Table(names, labels.astype(np.int64), images)

    return make


@pytest.fixture(scope="session")
def train_rows(rows: Callable[[int, int], Table]) -> Table:
    return rows(256, 0)


@pytest.fixture(scope="session")
def val_rows(rows: Callable[[int, int], Table]) -> Table:
    return rows(160, 1)


@pytest.fixture(scope="session")
def student(data: Schema, train_rows: Table) -> ResidualNetwork:
    """A network of two stages that has seen the training rows a few times."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = build(ARCHITECTURE, data, NORM)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    images, labels = (
        torch.from_numpy(train_rows.images).float(),
        torch.from_numpy(train_rows.labels),
    )
    for _ in range(6):
        for index in torch.arange(len(labels)).split(32):
            loss = torch.nn.functional.cross_entropy(net(images[index]), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="session")
def floats(student: ResidualNetwork, data: Schema) -> onnx.ModelProto:
    return export(folded(student), data)


@pytest.fixture(scope="session")
def project(
    student: ResidualNetwork,
    data: Schema,
    train_rows: Table,
    val_rows: Table,
    rows: Callable[[int, int], Table],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], Path]:
    """A function that gives a fresh working directory: tables, params, student and a teacher."""
    source, more = tmp_path_factory.mktemp("source"), rows(40, 2)
    unlabelled = replace(more, labels=np.full(len(more), UNLABELLED))
    for name, table in (("train", train_rows), ("val", val_rows), ("transfer", unlabelled)):
        write_table(source / f"data/{name}.parquet", table)
    empty = {field.name: pa.array([], field.type) for field in QUARANTINE}
    pq.write_table(pa.table(empty, schema=QUARANTINE), source / "data/quarantine.parquet")
    split = Split(rows=1, per_class={}, sha256="0")
    fingerprint = Fingerprint(
        format="stillhouse/fingerprint/1", data=data, snapshot="0", mean=NORM.mean, std=NORM.std,
        splits={"train": split, "val": split, "test": split}, digest="0",
    )  # fmt: skip
    write_json(source / "data/fingerprint.json", fingerprint.model_dump(mode="json"))
    for name in ("teacher", "student"):
        folder, state = source / "models" / name, student.state_dict()
        spec = ModelSpec(
            name=name, kind="torch", architecture=ARCHITECTURE, normalisation=NORM, data=data,
            parameters=parameters(state), bytes=4 * parameters(state), flops=flops(student, data),
            sha256=write_weights(folder / WEIGHTS, state),
        )  # fmt: skip
        write_spec(folder, spec)
    teacher = source / "models/teacher"
    banked = read_rows(data, source / "data", transfer=True)
    write_bank(
        teacher / "bank", banked, sha256(teacher / WEIGHTS), VIEWS.model_dump(),
        viewer(banked, VIEWS, data), lambda images, _: network_scorer(student)(images),
    )  # fmt: skip
    (source / "params.yaml").write_text(yaml.safe_dump(PARAMS))

    def fresh() -> Path:
        target = tmp_path_factory.mktemp("project") / "deep" / "checkout"
        shutil.copytree(source, target)
        return target

    return fresh


@pytest.fixture(scope="session")
def quantized(project: Callable[[], Path]) -> tuple[Path, Path]:
    """Two projects in two folders, each quantized by a process and user of its own."""
    folders = (project(), project())
    for number, folder in enumerate(folders):
        environment = {
            "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(number), "PATH": os.environ["PATH"],
            "HOME": str(folder), "USER": f"distiller{number}", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "tasks.quantize", "student"],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folders


def with_params(folder: Path, **quantize: object) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["quantize"] |= quantize
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def shipped_before() -> None:
    Path("ship/student").mkdir(parents=True)
    Path("ship/student/model.onnx").write_bytes(b"the former one")

"""A small world for the stress stage: tables, a teacher and a shipped student, crafted by hand."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.core.files import sha256, write_json
from tasks.core.models import (
    Architecture,
    ModelSpec,
    Normalisation,
    parameters,
    write_spec,
    write_weights,
)
from tasks.core.subgroups import write_subgroups
from tasks.core.tables import QUARANTINE, Fingerprint, Schema, Split, Table, write_table
from tasks.modalities.vision.networks import ResidualNetwork, build
from tasks.modalities.vision.scorers import network_scorer
from tasks.stress.budget import BUDGETS, Budget
from tasks.stress.case import Case, load_case

PARAMS = """
stress:
  families: [adversarial, corruptions, edge_cases, fidelity, slices, calibration, security]
  budget: smoke
  seed: 0
  adversarial:
    linf: [0.015, 0.1]
    l2: [0.3]
    profile: standard
    margin: 0.3
    robust: {epsilon: 0.1, accuracy: 0.0}
  corruptions: {severities: 2, margin: 0.2}
  edge_cases: {}
  fidelity: {agreement: 0.7, negative_flips: 0.3}
  slices: {margin: 0.3}
  calibration: {ece: 0.3, ood: [permuted], ood_auroc: null}
  security: {patch: 0.036, trigger: 0.7, membership: null}
"""


class Shipped(nn.Module):
    """A network as it ships: raw values in, `logits` and `valid` out."""

    def __init__(self, network: nn.Module, data: Schema) -> None:
        super().__init__()
        self.network = network
        self.low, self.high = data.range

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        inside = (images >= self.low) & (images <= self.high)
        return self.network(images), inside.flatten(1).all(1)


def export(network: nn.Module, data: Schema, path: Path) -> None:
    """Write `network` and its `valid` output as ONNX."""
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        Shipped(network, data).eval(),
        (torch.zeros(2, *data.shape),),
        input_names=["input"],
        output_names=["logits", "valid"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    onnx.save(program.model_proto, str(path))


def names(images: np.ndarray) -> np.ndarray:
    """A row's name is the SHA-256 of its content."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])


def fitted(architecture: Architecture, data: Schema, train: Table, epochs: int) -> ResidualNetwork:
    """A network trained in a second or two, the same one every time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.from_numpy(train.images.astype(np.float32))
    labels = torch.from_numpy(train.labels)
    norm = Normalisation(mean=float(images.mean()), std=float(images.std()))
    network = build(architecture, data, norm).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(64):
            loss = F.cross_entropy(network(images[index]), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


def write_teacher(
    folder: Path, network: ResidualNetwork, architecture: Architecture, data: Schema, test: Table
) -> None:
    """`models/teacher` and its stored predictions."""
    digest = write_weights(folder / "models/teacher/weights.safetensors", network.state_dict())
    write_spec(folder / "models/teacher", spec(network, architecture, data, digest))
    logits = network_scorer(network)(test.images)
    columns = {
        "row": test.rows.tolist(),
        "label": test.labels.astype(np.int32),
        "logits": list(logits),
    }
    (folder / "reports/teacher").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "reports/teacher/predictions.parquet")


def spec(
    network: ResidualNetwork, architecture: Architecture, data: Schema, digest: str
) -> ModelSpec:
    count = parameters(network.state_dict())
    norm = Normalisation(mean=float(network.mean), std=float(network.std))
    return ModelSpec(
        name="made",
        kind="torch",
        architecture=architecture,
        normalisation=norm,
        data=data,
        parameters=count,
        bytes=4 * count,
        flops=None,
        sha256=digest,
    )


def write_world(
    folder: Path,
    data: Schema,
    train: Table,
    test: Table,
    teacher: Architecture,
    student: Architecture,
    epochs: tuple[int, int] = (6, 8),
) -> None:
    """Everything that `python -m tasks.stress student FAMILY` reads."""
    (folder / "data").mkdir(parents=True)
    write_table(folder / "data/train.parquet", train)
    write_table(folder / "data/test.parquet", test)
    write_subgroups(folder / "data/subgroups.parquet", test.rows.tolist(), {})
    write_table(folder / "data/strangers.parquet", test.take(np.arange(0)))
    pq.write_table(QUARANTINE.empty_table(), folder / "data/quarantine.parquet")
    split = Split(rows=len(test), per_class={}, sha256=sha256(folder / "data/test.parquet"))
    page = Fingerprint(
        format="stillhouse/fingerprint/1",
        data=data,
        snapshot="0" * 64,
        splits={"test": split},
        mean=0.0,
        std=1.0,
        digest="0" * 64,
    )
    write_json(folder / "data/fingerprint.json", page.model_dump(mode="json"))
    (folder / "params.yaml").write_text(PARAMS)
    write_teacher(folder, fitted(teacher, data, train, epochs[0]), teacher, data, test)
    network, ship = fitted(student, data, train, epochs[1]), folder / "ship/student"
    digest = write_weights(ship / "float.safetensors", network.state_dict())
    write_json(ship / "float.json", spec(network, student, data, digest).model_dump(mode="json"))
    export(network, data, ship / "model.onnx")


@pytest.fixture(scope="session")
def digits_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1×8×8, ten classes, uint8 0..16: real digits, small trained networks."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    table = Table(names(images), labels.astype(np.int64), images)
    data = Schema(
        modality="vision",
        shape=(1, 8, 8),
        dtype="uint8",
        range=(0, 16),
        classes=tuple("0123456789"),
    )
    folder = tmp_path_factory.mktemp("digits")
    index = np.arange(len(labels))
    write_world(
        folder,
        data,
        table.take(index >= 200),
        table.take(index < 200),
        Architecture(widths=(12, 24)),
        Architecture(widths=(6, 8)),
    )
    return folder


@pytest.fixture(scope="session")
def colour_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3×16×20, three classes, float32 in -1..1: noisy patterns of colour."""
    random = np.random.default_rng(0)
    labels = np.arange(240, dtype=np.int64) % 3
    patterns = random.uniform(-0.5, 0.5, (3, 3, 4, 5)).repeat(4, 2).repeat(4, 3)
    images = patterns[labels] + random.normal(0, 0.25, (240, 3, 16, 20))
    images = np.clip(images, -1, 1).astype(np.float32)
    table = Table(names(images), labels, images)
    data = Schema(
        modality="vision",
        shape=(3, 16, 20),
        dtype="float32",
        range=(-1, 1),
        classes=("red", "green", "blue"),
    )
    folder = tmp_path_factory.mktemp("colour")
    index = np.arange(240)
    write_world(
        folder,
        data,
        table.take(index >= 60),
        table.take(index < 60),
        Architecture(widths=(6, 8)),
        Architecture(widths=(4, 4)),
    )
    return folder


@dataclass(frozen=True)
class World:
    """A writable copy of a world, which is also the working directory."""

    folder: Path

    def case(self, budget: Budget = BUDGETS["smoke"]) -> Case:
        return load_case("student", budget, seed=0)


@pytest.fixture
def digits(digits_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return _entered(digits_world, tmp_path, monkeypatch)


@pytest.fixture
def colour(colour_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return _entered(colour_world, tmp_path, monkeypatch)


def _entered(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    torch.set_num_threads(1)
    return World(tmp_path / "world")

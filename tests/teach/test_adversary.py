"""A teacher that meets an adversary while it learns stands more than one that does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from tasks.core.adversary import Adversary, search
from tasks.core.errors import ParamsError
from tasks.core.files import sha256
from tasks.core.metrics import accuracy
from tasks.core.params import check
from tasks.core.rows import in_memory
from tasks.core.signal import Student
from tasks.core.tables import Fingerprint, Schema, Split, Table, write_table
from tasks.modalities.vision.scorers import network_scorer
from tasks.teach.__main__ import _network
from tasks.teach.params import TeachParams

DATA = Schema(modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16),
              classes=tuple("0123456789"))  # fmt: skip
SECTION = {
    "source": "train",
    "architecture": {"widths": [8, 12]},
    "training": {"epochs": 8, "batch": 64, "learning_rate": 0.02},
    "views": {"count": 1},
}
ADVERSARY = {"epsilon": 0.15, "steps": 1, "step": 0.1875}


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Table, Table, Fingerprint]:
    """Training rows, validation rows, and the working directory where the latter lie."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    names = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    table, index = Table(names, labels.astype(np.int64), images), np.arange(len(labels))
    val = table.take(index < 300)
    write_table(tmp_path / "data/val.parquet", val)
    split = Split(rows=300, per_class={}, sha256=sha256(tmp_path / "data/val.parquet"))
    fingerprint = Fingerprint(
        format="stillhouse/fingerprint/1", data=DATA, snapshot="0", mean=4.9, std=6.0, digest="0",
        splits=dict.fromkeys(("train", "val", "test"), split),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return table.take(index >= 300), val, fingerprint


def test_adversarial_training_keeps_more_of_what_an_attack_leaves(
    digits: tuple[Table, Table, Fingerprint], tmp_path: Path
) -> None:
    train, val, fingerprint = digits
    torch.set_num_threads(1)
    images, labels = torch.from_numpy(val.images).float(), torch.from_numpy(val.labels)
    attack = search(Adversary(epsilon=0.15, steps=10, step=0.04), *DATA.range)

    def wrong(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    left, clean = {}, {}
    for name, adversary in {"plain": None, "robust": ADVERSARY}.items():
        params = check(TeachParams, SECTION | {"adversary": adversary}, where="")
        net = _network(params, fingerprint, in_memory(train), name, tmp_path / f"{name}.jsonl")
        torch.manual_seed(0)
        near = attack.worst(Student(net(images), {}, net, net), images, wrong)
        assert float((near - images).abs().max()) <= 0.15 * 16 + 1e-4
        clean[name] = float((net(images).argmax(1) == labels).float().mean())
        left[name] = float((net(near).argmax(1) == labels).float().mean())
    assert left["robust"] > left["plain"] + 0.15
    assert min(clean.values()) > 0.85


def test_an_epoch_is_chosen_under_attack_where_there_is_an_adversary(
    digits: tuple[Table, Table, Fingerprint], tmp_path: Path
) -> None:
    train, val, fingerprint = digits
    torch.set_num_threads(1)
    said = {}
    for name, adversary, patience in (
        ("plain", None, 90), ("robust", ADVERSARY, 90), ("unchosen", ADVERSARY, None),
    ):  # fmt: skip
        training = SECTION["training"] | {"patience": patience}
        section = SECTION | {"adversary": adversary, "training": training}
        params = check(TeachParams, section, where="")
        history = tmp_path / f"{name}.jsonl"
        net = _network(params, fingerprint, in_memory(train), name, history)
        lines = [json.loads(line)["val_accuracy"] for line in history.read_text().splitlines()]
        last = lines[-1] if patience is None else max(lines)  # of the weights that were kept
        clean = accuracy(network_scorer(net)(val.images), val.labels)
        said[name] = (last, round(clean, 6))
    assert said["plain"][0] == said["plain"][1]
    assert said["robust"][0] < said["robust"][1] - 0.1
    assert said["unchosen"][0] == said["unchosen"][1]  # no epoch is chosen: an attack is spared


def test_an_adversary_that_goes_nowhere_is_refused() -> None:
    section = SECTION | {"adversary": ADVERSARY | {"epsilon": 0}}
    with pytest.raises(ParamsError, match=r"adversary\.epsilon: must be greater than 0"):
        check(TeachParams, section, where="params.yaml: teach")

"""Small rungs, losses and batches for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.core.layers import Shapes
from tasks.core.models import Architecture, Normalisation
from tasks.core.params import check
from tasks.core.signal import Batch, Outputs, Student
from tasks.core.tables import Schema
from tasks.distill.losses import Weighted
from tasks.distill.params import Rung
from tasks.modalities.vision.networks import ResidualNetwork, build

RANGE = (0.0, 16.0)
SCHEMA = Schema(
    modality="vision", shape=(1, 8, 8), dtype="uint8", range=RANGE, classes=("a", "b", "c", "d")
)
BARE = Shapes(RANGE, {}, {})
RUNG: dict[str, Any] = {
    "from": "teacher",
    "architecture": {"widths": [4]},
    "training": {"epochs": 1, "learning_rate": 0.1},
    "temperature": 3.0,
}
TINY = {"epsilon": 0.01, "steps": 1, "step": 0.01}
INSIDE = {"signal": "live", "layers": {"near": "far"}}
OPTIONS: dict[str, dict[str, Any]] = {  # what a loss needs of its rung
    "hint": INSIDE,
    "attention": INSIDE,
    "adversarial": {"adversary": {"epsilon": 0.05, "steps": 4, "step": 0.02}},
    "dkd": {"dkd": {"alpha": 1.5, "beta": 4.0}},
}


def rung(name: str, **options: Any) -> Rung:
    return check(Rung, RUNG | {"losses": {name: 1.0}} | OPTIONS.get(name, {}) | options, "rung")


def loss(name: str, shapes: Shapes = BARE, **options: Any) -> Weighted:
    torch.manual_seed(5)
    return Weighted(rung(name, **options), shapes)


def drawn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.from_numpy(scale * np.random.default_rng(seed).normal(size=shape)).float()


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
OURS, THEIRS = drawn(6, 4, seed=1), drawn(6, 4, seed=2)
NEAR, FAR = drawn(6, 3, 4, 4, seed=3), drawn(6, 5, 2, 2, seed=4)
SHAPES = Shapes(RANGE, {"near": (3, 4, 4)}, {"far": (5, 2, 2)})


def batch(teacher: Tensor = THEIRS, weights: Tensor | None = None, **more: Any) -> Batch:
    above = (Outputs(teacher, {"far": more.get("far", FAR)}),)
    labels = more.get("labels", LABELS)
    return Batch(drawn(len(labels), 1, 8, 8).abs(), labels, above, weights)


def student(logits: Tensor = OURS, near: Tensor = NEAR) -> Student:
    return Student(logits, {"near": near})


def network(widths: tuple[int, ...] = (4, 8)) -> ResidualNetwork:
    return build(Architecture(widths=widths), SCHEMA, Normalisation(mean=8, std=5))

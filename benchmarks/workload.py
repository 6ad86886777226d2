"""What `bench-distill` trains: random rows and weights, since nothing there is about accuracy."""

from __future__ import annotations

import numpy as np
import torch

from tasks.core.models import Architecture, Normalisation
from tasks.core.rows import Rows, in_memory
from tasks.core.tables import Schema, Table
from tasks.modalities.vision.networks import ResidualNetwork, build
from tasks.modalities.vision.views import Views

THREADS, BATCH, BATCHES = 1, 256, 25
VIEW = 1  # view 0 is the row itself and costs nothing
VIEWS = Views(count=2, seed=0, shift=2, flip=True)
DATA = Schema(
    modality="vision", shape=(1, 28, 28), dtype="uint8", range=(0, 255), classes=tuple("0123456789")
)
TEACHER = Architecture(widths=(48, 96, 192), stride=2)
STUDENTS = tuple(
    Architecture(widths=widths, stride=2) for widths in ((12, 24, 48), (8, 16, 32), (6, 12, 24))
)
LEARNING = {"learning_rate": 0.01, "weight_decay": 0.05}


def random_rows() -> Rows:
    """The same rows in every process."""
    count, draw = BATCH * BATCHES, np.random.default_rng(0)
    names = np.array([f"{key:016x}{0:048x}" for key in draw.integers(0, 2**63, count)])
    images = draw.integers(0, 256, (count, *DATA.shape)).astype(np.uint8)
    return in_memory(Table(names, draw.integers(0, 10, count), images))


def network(architecture: Architecture) -> ResidualNetwork:
    """A network of random weights, the same in every process."""
    torch.manual_seed(0)
    return build(architecture, DATA, Normalisation(mean=128, std=74))

"""Fashion-MNIST made small: some rows, what the reference teacher says of them, and the preset's
student under it, so that a benchmark can train a dozen of them in minutes. Test rows are not read.

The student and its recipe are the preset's, but that it learns from the teacher alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import reference
from benchmarks.fashion_data import PRESET, table
from tasks.core.bank import Bank, BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.metrics import correct
from tasks.core.models import read_spec
from tasks.core.params import read
from tasks.core.rows import Rows, in_memory
from tasks.core.seeds import deterministic
from tasks.core.tables import Table
from tasks.core.trainer import Training, train
from tasks.distill.above import taught_by
from tasks.distill.params import Rung
from tasks.modalities.vision.networks import ResidualNetwork, build
from tasks.modalities.vision.scorers import load_network, network_scorer
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views

ROWS = 12_000  # to learn from, and as many others to score on
TEACHER = reference.STANDARD / "teacher"


@dataclass(frozen=True)
class Lesson:
    """Rows and the teacher's bank of them."""

    folder: Path
    rows: Rows
    views: Views
    bank: Bank
    rung: Rung

    def student(
        self,
        said: str,
        seed: int,
        epochs: int,
        count: int | None = None,
        start: ResidualNetwork | None = None,
        rate: float = 1.0,
    ) -> ResidualNetwork:
        """Train one; it sees the first `count` views, or all, in turn. `start`: whose weights it
        begins with; `rate`: what share of the preset's learning rate."""
        spec, view = (
            read_spec(reference.STANDARD / "student"),
            viewer(self.rows, self.views, read_spec(TEACHER).data),
        )
        assert spec.normalisation is not None
        torch.manual_seed(seed)
        net = build(self.rung.architecture, spec.data, spec.normalisation)
        if start is not None:
            net.load_state_dict(start.state_dict())
        count = count or self.views.count
        asked: dict[str, Any] = self.rung.training.model_dump() | {"epochs": epochs, "seed": seed}
        asked["learning_rate"] *= rate
        loss, signal = taught_by(
            "student", self.rung, net, TEACHER, read_spec(TEACHER), self.bank, threads=1
        )
        train(
            net,
            self.rows,
            loss,
            Training.model_validate(asked),
            view=lambda images, index, k: view(images, index, k % count),
            signal=lambda images, index, k: signal(images, index, k % count),
            validate=lambda: 0.0,
            history=self.folder / "history.jsonl",
            what=said,
        )
        return net


def tables() -> tuple[Table, Table]:
    """`ROWS` of the preset's rows to learn from, and as many to score on."""
    deterministic(0, int(read(PRESET)["threads"]))
    every = table(test=False)
    order = np.arange(len(every))
    return every.take(order[:ROWS]), every.take(order[-ROWS:])


def lesson(folder: Path, seen: Table, count: int) -> Lesson:
    """Bank `count` views of `seen` in `folder`."""
    preset, rows = read(PRESET), in_memory(seen)
    views = Views.model_validate(preset["teach"]["views"] | {"count": count})
    asked = preset["distill"]["rungs"]["student"] | {"losses": {"kd": 0.9, "cross_entropy": 0.1}}
    spec, place, known = read_spec(TEACHER), folder / "bank", views.model_dump()
    print(f"banking {count} views of {len(rows):,} rows", flush=True)
    score = network_scorer(load_network(TEACHER, spec))
    write_bank(
        place, rows, spec.sha256, known, viewer(rows, views, spec.data), lambda x, _: score(x)
    )
    bank = read_bank(place, rows, spec.sha256, known, BankForm())
    return Lesson(folder, rows, views, bank, Rung.model_validate(asked))


def right(net: ResidualNetwork, held: Table) -> NDArray[np.bool_]:
    """Which of the `held` rows it has right."""
    return correct(network_scorer(net)(held.images), held.labels)

"""What a bank of few views costs in accuracy: one student under the same teacher, by the number of
views that it sees again and again, on validation rows of Fashion-MNIST.

The teacher is the committed reference, the student and its recipe are the preset's, but that it
learns from the teacher alone, on fewer rows and epochs, so that all of it takes a quarter of an
hour. Test rows are not read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import reference
from benchmarks.fashion_data import PRESET, table
from benchmarks.table import Row, row
from tasks.core.bank import Bank, BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.metrics import correct
from tasks.core.models import read_spec
from tasks.core.params import read
from tasks.core.rows import Rows, in_memory
from tasks.core.seeds import deterministic
from tasks.core.statistics import clustered_bootstrap
from tasks.core.tables import Table
from tasks.core.trainer import Training, train
from tasks.distill.above import taught_by
from tasks.distill.params import Rung
from tasks.modalities.vision.networks import build
from tasks.modalities.vision.scorers import load_network, network_scorer
from tasks.modalities.vision.training import viewer
from tasks.modalities.vision.views import Views

COMMAND = "make bench-views"
TRAIN, VAL = 12_000, 12_000  # rows
EPOCHS, SEEDS = 16, 5
FEW = (1, 2, 4, 8)


def run() -> list[Row]:
    """Accuracy with each number of views, and what is lost against one view an epoch."""
    preset = read(PRESET)
    deterministic(0, int(preset["threads"]))
    every = table(test=False)
    order = np.arange(len(every))
    rows, held = in_memory(every.take(order[:TRAIN])), every.take(order[-VAL:])
    views = Views.model_validate(preset["teach"]["views"] | {"count": EPOCHS})
    asked = preset["distill"]["rungs"]["student"] | {"losses": {"kd": 0.9, "cross_entropy": 0.1}}
    rung = Rung.model_validate(asked)
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        bank = _banked(Path(scratch), rows, views)
        right = {
            count: np.stack(
                [
                    _right(Path(scratch), rows, held, bank, views, rung, count, seed)
                    for seed in range(SEEDS)
                ]
            )
            for count in (*FEW, EPOCHS)
        }
    full, found = right[EPOCHS], []
    for count in FEW:
        lost = full.astype(np.int64) - right[count].astype(np.int64)
        low, high = (100 * bound for bound in clustered_bootstrap(lost))
        found.append(
            row(f"{count} views for {EPOCHS} epochs: points lost to a view an epoch, "
                f"95 % bounds {low:.2f} and {high:.2f}",
                100 * lost.mean(), "", "", COMMAND, SEEDS)
        )  # fmt: skip
    every = f"{EPOCHS} views for {EPOCHS} epochs"
    whole = row(f"{every}: validation accuracy ({TRAIN:,} training rows)",
                full.mean(), "", "", COMMAND, SEEDS)  # fmt: skip
    return [whole, *found]


def _banked(scratch: Path, rows: Rows, views: Views) -> Bank:
    """The reference teacher's bank of one view an epoch."""
    folder = reference.STANDARD / "teacher"
    spec = read_spec(folder)
    print(f"bench-views: banking {views.count} views of {len(rows):,} rows", flush=True)
    score, asked, form = network_scorer(load_network(folder, spec)), views.model_dump(), BankForm()
    place = scratch / "bank"
    write_bank(place, rows, spec.sha256, asked, viewer(rows, views), lambda x, _: score(x))
    return read_bank(place, rows, spec.sha256, asked, form)


def _right(
    scratch: Path,
    rows: Rows,
    held: Table,
    bank: Bank,
    views: Views,
    rung: Rung,
    count: int,
    seed: int,
) -> NDArray[np.bool_]:
    """Which of the `held` rows a student of `seed` has right that saw the first `count` views."""
    spec, view = read_spec(reference.STANDARD / "student"), viewer(rows, views)
    assert spec.normalisation is not None
    torch.manual_seed(seed)
    net = build(rung.architecture, spec.data, spec.normalisation)
    training = rung.training.model_dump() | {"epochs": EPOCHS, "seed": seed}
    above = reference.STANDARD / "teacher"
    loss, signal = taught_by("student", rung, net, above, read_spec(above), bank, threads=1)
    train(
        net,
        rows,
        loss,
        Training.model_validate(training),
        view=lambda images, index, k: view(images, index, k % count),
        signal=lambda images, index, k: signal(images, index, k % count),
        validate=lambda: 0.0,
        history=scratch / "history.jsonl",
        what=f"bench-views | {count} views, seed {seed}",
    )
    return correct(network_scorer(net)(held.images), held.labels)

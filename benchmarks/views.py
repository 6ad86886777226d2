"""What a bank of few views costs in accuracy: one student under the same teacher, by the number of
views that it sees again and again, on validation rows of Fashion-MNIST (see `lesson`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.lesson import ROWS, lesson, right, tables
from benchmarks.table import Row, row
from tasks.core.statistics import clustered_bootstrap

COMMAND = "make bench-views"
EPOCHS, SEEDS = 16, 5
FEW = (1, 2, 4, 8)


def run() -> list[Row]:
    """Accuracy with each number of views, and what is lost against one view an epoch."""
    seen, held = tables()
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        taught = lesson(Path(scratch), seen, EPOCHS)
        hits = {
            count: np.stack(
                [
                    right(taught.student(f"{count} views, seed {seed}", seed, EPOCHS, count), held)
                    for seed in range(SEEDS)
                ]
            )
            for count in (*FEW, EPOCHS)
        }
    full, found = hits[EPOCHS], []
    for count in FEW:
        lost = full.astype(np.int64) - hits[count].astype(np.int64)
        low, high = (100 * bound for bound in clustered_bootstrap(lost))
        found.append(
            row(f"{count} views for {EPOCHS} epochs: points lost to a view an epoch, "
                f"95 % bounds {low:.2f} and {high:.2f}",
                100 * lost.mean(), "", "", COMMAND, SEEDS)
        )  # fmt: skip
    every = f"{EPOCHS} views for {EPOCHS} epochs"
    whole = row(f"{every}: validation accuracy ({ROWS:,} training rows)",
                full.mean(), "", "", COMMAND, SEEDS)  # fmt: skip
    return [whole, *found]

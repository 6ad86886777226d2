"""What a warm start saves: a former student goes on, beside one that learns from the beginning.

The former one has learned from all rows but a tenth, as from one retraining to the next, or from
half of them. It goes on for a quarter of the steps. On validation rows of Fashion-MNIST (see
`lesson`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.lesson import ROWS, lesson, right, tables
from benchmarks.table import Row, row
from tasks.core.statistics import clustered_bootstrap

COMMAND = "make bench-refresh"
EPOCHS, SEEDS = 16, 5
SHARE = 0.25  # of the epochs, and of the learning rate: it has little left to learn
FORMER = {9 * ROWS // 10: "<= 0.3", ROWS // 2: ""}  # rows that it had -> bar of what is lost


def run() -> list[Row]:
    """Accuracy of the former students, of new ones, and of those that go on."""
    seen, held = tables()
    said = f"accuracy on {ROWS:,} validation rows"
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        now = lesson(Path(scratch) / "now", seen, EPOCHS)
        new = [now.student(f"new, seed {seed}", seed, EPOCHS) for seed in range(SEEDS)]
        cold = np.stack([right(net, held) for net in new])
        rows = [
            row(f"new student, {ROWS:,} rows, {EPOCHS} epochs: {said}", cold.mean(), "", "",
                COMMAND, SEEDS),
            row("refreshed: share of the new student's steps", SHARE, "", "", COMMAND, SEEDS),
        ]  # fmt: skip
        for count, bar in FORMER.items():
            before = lesson(Path(scratch) / f"{count}", seen.take(np.arange(count)), EPOCHS)
            former, warm = [], []
            for seed in range(SEEDS):
                old = before.student(f"former of {count:,} rows, seed {seed}", seed, EPOCHS)
                gone_on = now.student(
                    f"refreshed, seed {seed}", seed, round(SHARE * EPOCHS), start=old, rate=SHARE
                )
                former.append(right(old, held))
                warm.append(right(gone_on, held))
            lost = cold.astype(np.int64) - np.stack(warm).astype(np.int64)
            what = f"refreshed student that had learned from {count:,} of the rows"
            rows += [
                row(f"former student, {count:,} rows, {EPOCHS} epochs: {said}", np.mean(former), "",
                    "", COMMAND, SEEDS),
                row(f"{what}: {said}", np.mean(warm), "", "", COMMAND, SEEDS),
                row(f"{what}: points lost to the new one", 100 * lost.mean(), "", "", COMMAND,
                    SEEDS),
                row(f"{what}: upper bound of that (95 %, rows and seeds resampled), points",
                    100 * clustered_bootstrap(lost)[1], "", bar, COMMAND, SEEDS),
            ]  # fmt: skip
    return rows

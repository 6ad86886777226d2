"""What a warm start saves: last month's student, learned from half of the rows, meets them all.

It goes on for a quarter of the steps, beside one that learns all of it from the beginning, on
validation rows of Fashion-MNIST (see `lesson`).
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


def run() -> list[Row]:
    """Accuracy of the former students, of new ones, and of those that go on."""
    seen, held = tables()
    warm_epochs = round(SHARE * EPOCHS)
    former, cold, warm = [], [], []
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        places = [Path(scratch) / name for name in ("before", "now")]
        before = lesson(places[0], seen.take(np.arange(ROWS // 2)), EPOCHS)
        now = lesson(places[1], seen, EPOCHS)
        for seed in range(SEEDS):
            old = before.student(f"former, seed {seed}", seed, EPOCHS)
            new = now.student(f"new, seed {seed}", seed, EPOCHS)
            gone_on = now.student(
                f"refreshed, seed {seed}", seed, warm_epochs, start=old, rate=SHARE
            )
            for found, net in ((former, old), (cold, new), (warm, gone_on)):
                found.append(right(net, held))
    lost = np.stack(cold).astype(np.int64) - np.stack(warm).astype(np.int64)
    _, most = clustered_bootstrap(lost)
    said = f"accuracy on {ROWS:,} validation rows"
    return [
        row(f"former student, {ROWS // 2:,} rows, {EPOCHS} epochs: {said}", np.mean(former), "", "",
            COMMAND, SEEDS),
        row(f"new student, {ROWS:,} rows, {EPOCHS} epochs: {said}", np.mean(cold), "", "", COMMAND,
            SEEDS),
        row(f"refreshed student, {ROWS:,} rows, {warm_epochs} epochs: {said}", np.mean(warm), "",
            "", COMMAND, SEEDS),
        row("refreshed: share of the new student's steps", SHARE, "", "", COMMAND, SEEDS),
        row("refreshed: points lost to the new student", 100 * lost.mean(), "", "", COMMAND, SEEDS),
        row("its upper bound (95 %, rows and seeds resampled), points", 100 * most, "", "<= 0.3",
            COMMAND, SEEDS),
    ]  # fmt: skip

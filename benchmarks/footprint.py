"""Peak memory of banking and one epoch, by the number of rows: each in a process of its own.

`python -m benchmarks.footprint FOLDER` is such a process: it reads the tables in FOLDER as a stage
does (a tenth of the rows are for validation), banks a small network, trains one under that bank,
validates it, and prints its peak in MB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from torch.nn import functional as F

from benchmarks.table import Row, row
from tasks.core.bank import BankForm, read_bank
from tasks.core.banking import write_bank
from tasks.core.models import Architecture, Normalisation
from tasks.core.rows import read_rows, read_validation
from tasks.core.seeds import deterministic
from tasks.core.signal import Batch, Student
from tasks.core.tables import QUARANTINE, Schema
from tasks.core.trainer import Training, train
from tasks.modalities.vision.networks import build
from tasks.modalities.vision.scorers import network_scorer
from tasks.modalities.vision.training import validator, viewer
from tasks.modalities.vision.views import Views

FEW, MANY, BLOCK = 60_000, 600_000, 6_000
RUNS = 3  # peaks hardly differ from run to run
DATA = Schema(
    modality="vision", shape=(1, 28, 28), dtype="uint8", range=(0, 255), classes=tuple("0123456789")
)

PIXELS = int(np.prod(DATA.shape))
COLUMNS = pa.schema(
    [("row", pa.string()), ("label", pa.int32()), ("pixels", pa.list_(pa.uint8(), PIXELS))]
)


def rows(base: Path, command: str) -> list[Row]:
    """The peaks and how much one is above the other."""
    peaks = {}
    for count in (FEW, MANY):
        print(f"bench-distill: memory at {count:,} rows", flush=True)
        folder = base / str(count)
        written(folder, count)
        found = []
        for _ in range(RUNS if count == FEW else 1):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.footprint", str(folder)],
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                check=True,
            )
            found.append(float(done.stdout.split()[-1]))
        peaks[count] = sorted(found)[len(found) // 2]
        shutil.rmtree(folder)
    grown = 100 * (peaks[MANY] / peaks[FEW] - 1)
    return [
        row(f"peak memory of banking and one epoch, {FEW:,} rows", peaks[FEW], "MB", "", command,
            RUNS),
        row(f"peak memory of banking and one epoch, {MANY:,} rows", peaks[MANY], "MB", "", command),
        row(f"peak memory, growth from {FEW:,} to {MANY:,} rows", grown, "%", "<= 10", command),
    ]  # fmt: skip


def written(folder: Path, count: int) -> None:
    """Random images, the same few repeated, under ids of their own; nothing in quarantine."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    values = pa.array(draw.integers(0, 256, BLOCK * PIXELS).astype(np.uint8))
    pixels = pa.FixedSizeListArray.from_arrays(values, PIXELS)
    labels = pa.array(draw.integers(0, 10, BLOCK).astype(np.int32))
    for split, size in (("train", count), ("val", count // 10)):
        with pq.ParquetWriter(folder / f"{split}.parquet", COLUMNS) as writer:
            for start in range(0, size, BLOCK):
                names = [f"{i:064x}" for i in range(start, start + BLOCK)]
                writer.write_table(pa.table([names, labels, pixels], schema=COLUMNS))
    pq.write_table(QUARANTINE.empty_table(), folder / "quarantine.parquet")


def used(folder: Path) -> float:
    """Read, bank and train in this process; its peak in MB."""
    deterministic(0, 1)
    rows, views = read_rows(DATA, folder), Views(count=1, shift=2)
    net = build(Architecture(widths=(4,), stride=2), DATA, Normalisation(mean=128, std=74))
    view, score = viewer(rows, views, DATA), network_scorer(net)
    write_bank(folder / "bank", rows, "m", views.model_dump(), view, lambda x, _: score(x))
    bank = read_bank(folder / "bank", rows, "m", views.model_dump(), BankForm())

    def loss(student: Student, batch: Batch) -> Tensor:
        return F.mse_loss(student.logits, batch.teacher.logits)

    train(
        net, rows, loss, Training(epochs=1, batch=256, learning_rate=0.01), view=view,
        validate=validator(net, read_validation(DATA, folder)), signal=bank.signal,
        history=folder / "history.jsonl", what="bench",
    )  # fmt: skip
    return peak()


def peak() -> float:
    """The largest resident set of this process so far, in MB.

    Not `ru_maxrss`: on Linux that begins with the peak of whoever started the process.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) / 1024


if __name__ == "__main__":
    print(used(Path(sys.argv[1])))

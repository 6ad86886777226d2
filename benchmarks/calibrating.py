"""`python -m benchmarks.calibrating ROWS` calibrates the committed student; its peak in MB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import reference
from benchmarks.fashion_data import table
from benchmarks.footprint import peak
from benchmarks.table import Row, row
from tasks.core.models import read_spec
from tasks.core.seeds import deterministic
from tasks.modalities.vision.networks import folded
from tasks.modalities.vision.scorers import load_network
from tasks.quantize.calibrate import calibrate, calibration_rows
from tasks.quantize.export import export
from tasks.quantize.params import Calibration

FEW, MANY = 1_000, 20_000
RUNS = 3


def rows(command: str) -> list[Row]:
    """The peaks, and how much one is above the other; medians."""
    peaks = {}
    for count in (FEW, MANY):
        found = []
        for _ in range(RUNS):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.calibrating", str(count)],
                cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
            )  # fmt: skip
            found.append(float(done.stdout.split()[-1]))
        peaks[count] = sorted(found)[RUNS // 2]
    grown = 100 * (peaks[MANY] / peaks[FEW] - 1)
    return [
        *(row(f"peak memory of calibration, {n:,} rows", p, "MB", "", command, RUNS)
          for n, p in peaks.items()),
        row("peak memory of calibration, growth", grown, "%", "<= 5", command, RUNS),
    ]  # fmt: skip


def used(count: int) -> float:
    """Calibrate on `count` rows in this process; its peak in MB."""
    deterministic(0, threads=1)
    spec = read_spec(reference.STANDARD / "student")
    learn = table(test=False)
    graph = export(folded(load_network(reference.STANDARD / "student", spec).eval()), spec.data)
    method = Calibration(rows=count, method="percentile", percentile=99.99)
    calibrate(graph, calibration_rows(learn, count), method)
    return peak()


if __name__ == "__main__":
    print(used(int(sys.argv[1])))

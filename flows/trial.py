"""The clean-process trial: the very file, loaded and asked by a stranger, before it is champion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.bundle import read_shipped
from tasks.core.errors import DataError, GateError
from tasks.core.session import open_session, score

ROWS = 64  # asked of the file
PATIENCE = 60  # seconds
PROBE = Path(__file__).with_name("probe.py")


def try_file(file: Path, images: NDArray[np.generic], scratch: Path) -> str:
    """Ask a copy of `file` about `images` (N, C, H, W) in a process without this project's code;
    says what was seen.

    A `GateError` if the answers are not those that ONNX Runtime gives here, differ between batches,
    or an invalid row is not told apart.
    """
    rows = images[:ROWS].astype(np.float32)
    folder = scratch / "trial"
    folder.mkdir()
    shutil.copyfile(file, folder / "model.onnx")
    np.save(folder / "rows.npy", rows)
    command = [sys.executable, "-I", str(PROBE), "model.onnx", "rows.npy", "answers.npz"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={"PATH": os.defpath},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise GateError(
            f"{file.name}: no answer in a clean process after {PATIENCE} s; not promoted"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise DataError(f"{file.name}: a clean process cannot use it ({last}); not promoted")
    with np.load(folder / "answers.npz", allow_pickle=False) as answers:
        found = {name: answers[name] for name in answers.files}
    expected, _ = score(open_session(file), rows)
    same = np.array_equal(found["logits"], expected)
    steady = np.array_equal(found["single"], found["logits"])
    if not (same and steady and found["valid"].all() and found["refused"].all()):
        raise GateError(f"{file.name}: answers otherwise in a clean process; not promoted")
    return f"a clean process loads it and gives the same {len(rows)} answers, bit for bit"


def random_rows(bundle: Path) -> NDArray[np.float32]:
    """Rows of the range that a bundle's `spec.json` declares, the same every time."""
    data = read_shipped(bundle).data
    low, high = data.range
    random = np.random.default_rng(0)
    return random.uniform(low, high, size=(ROWS, *data.shape)).astype(np.float32)

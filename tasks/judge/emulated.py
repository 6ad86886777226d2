"""`python -m tasks.judge.emulated MODEL FOLDER`: score a file, meant for an emulated CPU.

Reads `images.npy` in FOLDER; writes `logits.npy` and `valid.npy` beside it. One thread, no pickle.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tasks.core.session import open_session, score


def run(model: Path, folder: Path) -> None:
    """Logits and `valid` of the raw images (N, C, H, W) in `folder`."""
    images = np.load(folder / "images.npy", allow_pickle=False)
    logits, valid = score(open_session(model, threads=1), images)
    np.save(folder / "logits.npy", logits, allow_pickle=False)
    np.save(folder / "valid.npy", valid, allow_pickle=False)


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:]))

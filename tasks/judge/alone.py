"""`python -m tasks.judge.alone MODEL IMAGES`: load one model and answer once, and say as JSON what
that took: `load_ms`, and `memory_mb`, by how much the process grew at most.

MODEL is an ONNX file or the folder of a teacher, IMAGES an array (N, C, H, W) in float32. What the
libraries themselves take is loaded before and left out: it is the same for every model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from tasks.core.cost import latency_ms
from tasks.core.session import open_session, score
from tasks.modalities.vision.scorers import Scorer, load_scorer

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Load, answer, say."""
    torch.set_num_threads(1)
    model, images = Path(sys.argv[1]), np.load(sys.argv[2], allow_pickle=False)
    before = _reset()
    opened: list[Scorer] = []
    load = latency_ms(lambda: opened.append(_opened(model)), runs=1, warm_up=0)["p50"]
    opened[0](images)
    after = None if before is None else _peak()
    grown = None if before is None or after is None else round((after - before) / 1024, 2)
    print(json.dumps({"load_ms": load, "memory_mb": grown}))


def _opened(model: Path) -> Scorer:
    if model.is_dir():
        return load_scorer(model)
    session = open_session(model, threads=1)
    return lambda images: score(session, images)[0]


def _reset() -> int | None:
    """Let the peak be what is resident now, and return it in KiB; None where that is not Linux."""
    try:
        RESET.write_text("5")
    except OSError:
        return None
    return _peak()


def _peak() -> int:
    """The most that was resident, in KiB. getrusage would tell of the process that started us."""
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next(int(line[1]) for line in lines if line and line[0] == "VmHWM:")


if __name__ == "__main__":
    main()

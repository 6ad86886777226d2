"""The rows of Fashion-MNIST as the preset's own files hold them, for benchmarks without a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.core.params import read
from tasks.core.tables import Table
from tasks.ingest.split import row_id
from tasks.modalities.vision.sources.idx import idx_files

PRESET = Path(__file__).parents[1] / "presets" / "fashion-mnist.yaml"


def table(test: bool) -> Table:
    """The given test rows, or those to learn from; rows by the order of their hashes."""
    data = read(PRESET)["data"]
    images = idx_files(Path(data["path"]), tuple(data["classes"]))
    assert images.test is not None
    code = {name: index for index, name in enumerate(data["classes"])}
    chosen = np.flatnonzero(images.test == test)
    names = np.array([row_id(images.pixels[i]) for i in chosen])
    labels = np.array([code[images.labels[i]] for i in chosen], dtype=np.int64)
    return Table(names, labels, images.pixels[chosen]).take(np.argsort(names, kind="stable"))

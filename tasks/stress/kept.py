"""Kept adversarial examples: the image that broke each row, stored and proven to break it again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tasks.stress.case import Case
from tasks.stress.ladder import Fallen

SCHEMA = pa.schema(
    [
        ("row", pa.string()),
        ("label", pa.int32()),
        ("predicted", pa.int32()),
        ("norm", pa.string()),
        ("epsilon", pa.float64()),
        ("attack", pa.string()),
        ("pixels", pa.list_(pa.float32())),
    ]
)


def kept_examples(case: Case, fallen: Sequence[Fallen]) -> pa.Table:
    """Per norm and row that fell, its image at the smallest epsilon tried that broke it."""
    parts = [_of(case, found) for found in fallen]
    return pa.concat_tables(parts)


def _of(case: Case, fallen: Fallen) -> pa.Table:
    at = np.flatnonzero(np.isfinite(fallen.epsilon))
    images = fallen.images[at]
    columns = [
        pa.array([str(row) for row in fallen.target.rows[at]], pa.string()),
        pa.array(fallen.target.labels[at], pa.int32()),
        pa.array(case.score(images).argmax(axis=1) if len(at) else [], pa.int32()),
        pa.array([fallen.norm] * len(at), pa.string()),
        pa.array(fallen.epsilon[at], pa.float64()),
        pa.array([str(name) for name in fallen.attack[at]], pa.string()),
        pa.array(list(images.reshape(len(at), -1) if len(at) else []), pa.list_(pa.float32())),
    ]
    return pa.table(columns, schema=SCHEMA)


def rescore(case: Case, kept: pa.Table) -> None:
    """Score the kept images as they are stored; one that answers otherwise or fools nobody is an
    error."""
    if kept.num_rows == 0:
        return
    flat = kept["pixels"].combine_chunks().flatten().to_numpy()
    images = flat.reshape(-1, *case.data.shape).astype(np.float32)
    predicted = case.score(images).argmax(axis=1)
    recorded, labels = kept["predicted"].to_numpy(), kept["label"].to_numpy()
    differs = int(((predicted != recorded) | (predicted == labels)).sum())
    if differs:
        raise ValueError(
            f"{differs} of {kept.num_rows} kept examples do not reproduce; "
            "the model's answers depend on the batch"
        )

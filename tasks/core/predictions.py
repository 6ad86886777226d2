"""Stored predictions of test rows: evaluate writes them, stress and judge compare with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.files import whole
from tasks.core.tables import Table

TEACHER = Path("reports/teacher/predictions.parquet")


def write_predictions(path: Path, test: Table, logits: NDArray[np.float32]) -> None:
    """Write `row`, `label` and `logits` (N, classes) in table order."""
    flat = pa.array(np.ascontiguousarray(logits).reshape(-1))
    columns = {
        "row": pa.array(test.rows.tolist(), pa.string()),
        "label": pa.array(test.labels),
        "logits": pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
    }
    with whole(path) as scratch:
        pq.write_table(pa.table(columns), scratch, compression="zstd")


def read_predictions(path: Path, test: Table, classes: int) -> NDArray[np.float32]:
    """The logits (N, classes) of today's test rows in their order; else a `DataError`."""
    try:
        stored = pq.read_table(path, columns=["row", "logits"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run evaluate") from None
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{path}: not readable as predictions ({error}); run evaluate") from None
    if stored["row"].to_pylist() != test.rows.tolist():
        raise DataError(f"{path}: predictions of other rows than data/test.parquet; run evaluate")
    logits = np.array(stored["logits"].to_pylist(), dtype=np.float32)
    if logits.shape != (len(test), classes):
        raise DataError(
            f"{path}: logits of {logits.shape}, not {(len(test), classes)}; run evaluate"
        )
    return logits

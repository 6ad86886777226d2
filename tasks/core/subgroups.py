"""`data/subgroups.parquet`: which subgroups each test row belongs to, by declared column.

Columns of the source that `data.subgroups` names, such as a site or a device. They are kept for
test rows alone: nothing learns from them, and each is judged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.files import whole
from tasks.core.tables import DATA

SUBGROUPS = DATA / "subgroups.parquet"
MISSING = "(missing)"  # the subgroup of rows without a value
MOST = 50  # values of a column: with more there is nothing to be said of any

Groups = Mapping[str, Sequence[str]]  # column -> a value per row


def write_subgroups(path: Path, rows: Sequence[str], groups: Groups) -> None:
    """Write `row` and a text column per subgroup column, in table order; perhaps no such column."""
    columns = {"row": pa.array(list(rows), pa.string())}
    columns |= {f"group.{name}": pa.array(list(v), pa.string()) for name, v in groups.items()}
    with whole(path) as scratch:
        pq.write_table(pa.table(columns), scratch, compression="zstd")


def read_subgroups(path: Path, rows: NDArray[np.str_]) -> dict[str, NDArray[np.str_]]:
    """Column -> value (N,) of each of the `rows` of today's test table; else a `DataError`."""
    try:
        stored = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run ingest") from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: not readable as subgroups ({error}); run ingest") from None
    if "row" not in stored.column_names or stored["row"].to_pylist() != rows.tolist():
        raise DataError(f"{path}: subgroups of other rows than data/test.parquet; run ingest")
    return {
        name.removeprefix("group."): np.array(stored[name].to_pylist(), dtype=np.str_)
        for name in stored.column_names
        if name != "row"
    }

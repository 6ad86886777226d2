"""Tables of labelled arrays in Parquet, and the fingerprint that describes them.

A table has one row per example: `row` (SHA-256 of its content), `label` (class index) and
`pixels` (flat, fixed length). The quarantine lists rows that are set aside from training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.files import read_json, whole
from tasks.core.params import Section, check

SPLITS = ("train", "val", "test")
UNLABELLED = -1  # the label of a row of the transfer set, and of a stranger
DATA = Path("data")


class Schema(Section):
    """What one example is: shape (C, H, W), dtype and closed range of its raw values, classes."""

    modality: Literal["vision"]
    shape: tuple[int, int, int]
    dtype: Literal["uint8", "float32"]
    range: tuple[float, float]
    classes: tuple[str, ...]


class Split(Section):
    """One table: its rows, per class, and the SHA-256 of its file."""

    rows: int
    per_class: dict[str, int]
    sha256: str


class Unlabelled(Section):
    """A table without labels; `left_out` of the images come twice or are labelled elsewhere."""

    rows: int
    left_out: int
    sha256: str


class Fingerprint(Section):
    """`data/fingerprint.json`: the data of a run in one page; `digest` covers all of it.

    `copies_of_test`: rows that are in neither train nor val because the source's own test split
    holds their image.
    """

    format: Literal["stillhouse/fingerprint/1"]
    data: Schema
    snapshot: str
    splits: dict[str, Split]
    mean: float
    std: float
    copies_of_test: int | None = None
    transfer: Unlabelled | None = None
    strangers: Unlabelled | None = None
    digest: str


@dataclass(frozen=True)
class Table:
    """Rows in memory. `images` has shape (N, C, H, W) in the raw dtype; `labels` is int64."""

    rows: NDArray[np.str_]
    labels: NDArray[np.int64]
    images: NDArray[np.uint8] | NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> Table:
        """The rows that `index` selects."""
        return Table(self.rows[index], self.labels[index], self.images[index])


def write_table(path: Path, table: Table) -> None:
    """Write `table` as Parquet, perhaps without rows; equal tables give equal bytes."""
    flat = pa.array(np.ascontiguousarray(table.images).reshape(-1))
    pixels = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(table.images.shape[1:])))
    columns = {
        "row": pa.array(table.rows.tolist(), pa.string()),
        "label": pa.array(table.labels.astype(np.int32)),
        "pixels": pixels,
    }
    with whole(path) as scratch:
        # Groups of rows, so that a reader can stream them.
        pq.write_table(pa.table(columns), scratch, compression="zstd", row_group_size=8192)


def read_table(path: Path, schema: Schema) -> Table:
    """Read a Parquet table and check it against `schema`."""
    try:
        content = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `stillhouse run` or `dvc checkout`") from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); run ingest") from None
    flat = content["pixels"].combine_chunks()
    values = flat.flatten().to_numpy(zero_copy_only=False)
    expected = int(np.prod(schema.shape))
    if len(content) * expected != len(values):
        raise DataError(f"{path}: rows do not have {expected} values each; run ingest")
    images = values.astype(schema.dtype, copy=False).reshape(-1, *schema.shape)
    rows = np.array(content["row"].to_pylist(), dtype="U64")
    return Table(rows, content["label"].to_numpy().astype(np.int64), images)


def read_fingerprint(path: Path = DATA / "fingerprint.json") -> Fingerprint:
    """The fingerprint of today's tables."""
    return check(Fingerprint, read_json(path), where=str(path))


def read_split(split: str, schema: Schema, folder: Path = DATA) -> Table:
    """One split, whole."""
    return read_table(folder / f"{split}.parquet", schema)


def read_train(schema: Schema, folder: Path = DATA) -> Table:
    """The training rows that validation did not set aside."""
    table = read_split("train", schema, folder)
    keep = np.ones(len(table), dtype=bool)
    keep[list(set_aside(folder / "quarantine.parquet", "train"))] = False
    return table.take(keep)


def set_aside(path: Path, split: str) -> set[int]:
    """Positions in the table of `split` that the quarantine at `path` lists."""
    aside = read_quarantine(path)
    found = zip(aside["split"], aside["position"], strict=True)
    return {position for name, position in found if name == split and isinstance(position, int)}


QUARANTINE = pa.schema(
    [
        ("split", pa.string()),  # train | val | test
        ("position", pa.int64()),  # index of the row in that table
        ("row", pa.string()),
        ("label", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def read_quarantine(path: Path) -> dict[str, list[str] | list[int]]:
    """The quarantine as columns; see `QUARANTINE`."""
    try:
        table = pq.read_table(path, schema=QUARANTINE)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run validate") from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable quarantine ({error}); run validate") from None
    content: dict[str, list[str] | list[int]] = table.to_pydict()
    return content

"""Everything that is found out about the tables before expectations are put to it.

Reads arrays, returns arrays; decides neither what is critical nor what is set aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.core.errors import DataError
from tasks.core.files import sha256
from tasks.core.tables import DATA, SPLITS, Fingerprint, Schema, Table
from tasks.validate.duplicates import Copies, Near, exact, near
from tasks.validate.labels import LabelIssues, label_issues
from tasks.validate.params import ValidateParams

COLUMNS = ("row", "label", "pixels")


@dataclass(frozen=True)
class TableFile:
    """A Parquet table from outside: its columns with their types, and whether it is the one that
    the fingerprint names."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: int
    nulls: int
    fingerprinted: bool

    def readable(self, schema: Schema) -> bool:
        """Whether its rows can be read as rows of `schema`."""
        formed = (self.columns, self.types, self.nulls) == (COLUMNS, column_types(schema), 0)
        return formed and self.rows > 0


@dataclass(frozen=True)
class Faults:
    """Per row of a split: values that are NaN, values outside the range (infinite ones included),
    and whether the label is no class or the image is one flat value."""

    missing: NDArray[np.int64]
    out_of_range: NDArray[np.int64]
    unknown_label: NDArray[np.bool_]
    constant: NDArray[np.bool_]

    @property
    def any(self) -> NDArray[np.bool_]:
        """Rows that no model can be trained or measured on."""
        return np.asarray((self.missing > 0) | (self.out_of_range > 0) | self.unknown_label)


@dataclass(frozen=True)
class Examination:
    """All findings, per split; label issues are of train."""

    schema: Schema
    tables: dict[str, Table]
    faults: dict[str, Faults]
    copies: dict[str, Copies]
    near: dict[str, Near]
    labels: LabelIssues


def column_types(schema: Schema) -> tuple[str, ...]:
    """What `COLUMNS` should be.

    >>> column_types(Schema(modality="vision", shape=(1, 8, 8), dtype="uint8", range=(0, 16),
    ...                     classes=("a", "b")))
    ('string', 'int32', 'uint8[64]')
    """
    value = {"uint8": "uint8", "float32": "float"}[schema.dtype]
    return "string", "int32", f"{value}[{int(np.prod(schema.shape))}]"


def table_file(path: Path, declared_sha256: str) -> TableFile:
    """Look at a Parquet file without assuming what is in it."""
    try:
        content = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run ingest") from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); run ingest") from None
    nulls = 0
    for column in content.columns:
        nulls += column.null_count
        if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
            nulls += sum(chunk.flatten().null_count for chunk in column.chunks)
    return TableFile(
        columns=tuple(content.column_names),
        types=tuple(_type(field.type) for field in content.schema),
        rows=len(content),
        nulls=nulls,
        fingerprinted=sha256(path) == declared_sha256,
    )


def table_files(fingerprint: Fingerprint, folder: Path = DATA) -> dict[str, TableFile]:
    """The three tables as files."""
    missing = [s for s in SPLITS if s not in fingerprint.splits]
    if missing:
        raise DataError(f"{folder / 'fingerprint.json'}: knows no split '{missing[0]}'; run ingest")
    return {s: table_file(folder / f"{s}.parquet", fingerprint.splits[s].sha256) for s in SPLITS}


def examine(tables: Mapping[str, Table], schema: Schema, params: ValidateParams) -> Examination:
    """Find faults, copies, near copies and, among train rows free of these, label issues."""
    found = {split: faults(table, schema) for split, table in tables.items()}
    copies = exact(tables)
    alike = near(tables, copies, params.near_duplicate)
    mine = copies["train"]
    copied = mine.later | mine.conflicting | (mine.elsewhere != "")
    usable = ~(found["train"].any | copied | (alike["train"].similarity > 0))
    check = params.label_issues
    labels = label_issues(tables["train"], usable, schema, check.folds, params.seed)
    return Examination(schema, dict(tables), found, copies, alike, labels)


def faults(table: Table, schema: Schema) -> Faults:
    """Per row, what is wrong with its own values and label."""
    values = table.images.reshape(len(table), int(np.prod(schema.shape)))
    low, high = schema.range
    return Faults(
        missing=np.isnan(values).sum(axis=1),
        out_of_range=((values < low) | (values > high)).sum(axis=1),
        unknown_label=(table.labels < 0) | (table.labels >= len(schema.classes)),
        constant=(values == values[:, :1]).all(axis=1),
    )


def _type(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.value_type}[{kind.list_size}]"
    return str(kind)

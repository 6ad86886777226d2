from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.core.errors import DataError
from tasks.core.tables import QUARANTINE, Schema, Table, read_table, read_train, write_table


def some(shape: tuple[int, int, int], dtype: str, rows: int = 12) -> tuple[Table, Schema]:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 16, (rows, *shape)).astype(dtype)
    schema = Schema(modality="vision", shape=shape, dtype=dtype, range=(0, 16), classes=("a", "b"))  # type: ignore[arg-type]
    return Table(np.array([f"{i:064x}" for i in range(rows)]), np.arange(rows) % 2, images), schema


@pytest.mark.parametrize(("shape", "dtype"), [((1, 8, 8), "uint8"), ((3, 5, 7), "float32")])
def test_a_table_reads_back_as_it_was_written(
    tmp_path: Path, shape: tuple[int, int, int], dtype: str
) -> None:
    table, schema = some(shape, dtype)
    write_table(tmp_path / "t.parquet", table)
    again = read_table(tmp_path / "t.parquet", schema)
    assert np.array_equal(again.images, table.images)
    assert again.images.dtype == table.images.dtype
    assert again.labels.tolist() == table.labels.tolist()
    assert again.rows.tolist() == table.rows.tolist()


def test_equal_tables_have_equal_bytes(tmp_path: Path) -> None:
    table, _ = some((1, 8, 8), "uint8")
    write_table(tmp_path / "a.parquet", table)
    write_table(tmp_path / "b.parquet", table)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_quarantined_training_rows_are_set_aside_and_others_stay(tmp_path: Path) -> None:
    table, schema = some((1, 8, 8), "uint8")
    write_table(tmp_path / "train.parquet", table)
    aside = [("train", 3), ("test", 4), ("train", 11)]
    pq.write_table(
        pa.table(
            {
                "split": [s for s, _ in aside],
                "position": [p for _, p in aside],
                "row": [table.rows[p] for _, p in aside],
                "label": ["a"] * 3,
                "reason": ["x"] * 3,
                "detail": [""] * 3,
            },
            schema=QUARANTINE,
        ),
        tmp_path / "quarantine.parquet",
    )
    kept = read_train(schema, tmp_path)
    assert kept.rows.tolist() == np.delete(table.rows, [3, 11]).tolist()


def test_a_missing_or_torn_quarantine_is_one_line(tmp_path: Path) -> None:
    table, schema = some((1, 8, 8), "uint8")
    write_table(tmp_path / "train.parquet", table)
    with pytest.raises(DataError, match="run validate"):
        read_train(schema, tmp_path)
    (tmp_path / "quarantine.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="not a readable quarantine"):
        read_train(schema, tmp_path)


def test_a_truncated_or_foreign_table_is_one_line(tmp_path: Path) -> None:
    table, schema = some((1, 8, 8), "uint8")
    path = tmp_path / "t.parquet"
    write_table(path, table)
    wide = Schema(**{**schema.model_dump(), "shape": (1, 9, 9)})
    with pytest.raises(DataError, match="do not have 81 values"):
        read_table(path, wide)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet"):
        read_table(path, schema)

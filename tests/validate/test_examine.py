"""Files and faults, before any expectation."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.core.errors import DataError
from tasks.validate.examine import examine, faults, table_file, table_files
from tasks.validate.params import ValidateParams


def test_a_written_table_is_readable_and_fingerprinted(blobs, tmp_path):
    data = blobs(shape=(3, 4, 5), dtype="float32")
    fingerprint = data.write(tmp_path)

    file = table_files(fingerprint, tmp_path)["val"]

    assert file.types == ("string", "int32", "float[60]")
    assert file.readable(data.schema)
    assert file.fingerprinted


@pytest.mark.parametrize("change", ["type", "column", "null label", "null pixel", "no rows"])
def test_a_table_of_another_form_is_not_readable(blobs, tmp_path, change):
    data = blobs()
    path = tmp_path / "train.parquet"
    data.write(tmp_path)
    table = pq.read_table(path)
    if change == "type":
        table = table.set_column(1, "label", table["label"].cast(pa.float64()))
    elif change == "column":
        table = table.drop_columns(["row"])
    elif change == "null label":
        table = table.set_column(1, "label", pa.array([None, *[0] * 89], pa.int32()))
    elif change == "no rows":
        table = table.slice(0, 0)
    else:
        pixels = [[None, *[0] * 15], *[[0] * 16] * 89]
        table = table.set_column(2, "pixels", pa.array(pixels, pa.list_(pa.uint8(), 16)))
    pq.write_table(table, path)

    file = table_file(path, "")

    assert not file.readable(data.schema)
    assert not file.fingerprinted


def test_a_file_that_is_no_parquet_is_a_data_error_of_one_line(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR0")

    with pytest.raises(DataError, match=r"train\.parquet: not a readable Parquet file") as raised:
        table_file(path, "")
    assert "\n" not in str(raised.value)


def test_a_missing_table_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file; run ingest"):
        table_file(tmp_path / "val.parquet", "")


def test_faults_are_counted_per_row(blobs):
    data = blobs(dtype="float32")
    images = data.tables["val"].images.copy()
    images[0, 0, 0, :2] = np.nan
    images[1, 0, 0, :3] = [np.inf, -0.5, 1.5]
    images[2] = 0.5
    labels = data.tables["val"].labels.copy()
    labels[3:5] = [-1, 3]
    table = type(data.tables["val"])(data.tables["val"].rows, labels, images)

    found = faults(table, data.schema)

    assert found.missing[:4].tolist() == [2, 0, 0, 0]
    assert found.out_of_range[:4].tolist() == [0, 3, 0, 0]
    assert np.flatnonzero(found.constant).tolist() == [2]
    assert np.flatnonzero(found.unknown_label).tolist() == [3, 4]
    assert np.flatnonzero(found.any).tolist() == [0, 1, 3, 4]


def test_rows_that_are_faulty_or_copies_are_not_judged_for_their_label(blobs):
    data = blobs(dtype="float32").with_value("train", 8, np.nan)
    train, test = data.tables["train"].images, data.tables["test"].images
    planted = np.concatenate([train[:1], train[3:4], test[1:2], 0.9 * test[2:3]])
    data = data.with_rows("train", planted, [0, 1, 1, 2])
    params = ValidateParams.model_validate(
        {
            "min_rows": {"train": 1, "val": 1, "test": 1},
            "min_share": 0.2,
            "near_duplicate": 0.995,
            "label_issues": {"folds": 3},
            "seed": 0,
        }
    )

    found = examine(data.tables, data.schema, params)

    # 94 rows: less one with NaN, one copy, two of conflicting labels, one of test, one near test
    assert found.labels.checked == 88

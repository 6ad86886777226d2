"""What Great Expectations is given to look at."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.core.tables import Table
from tasks.validate.examine import examine
from tasks.validate.frames import BLOCKS, classes_frame, pixels_frame, rows_frame
from tasks.validate.params import ValidateParams
from tasks.validate.quarantine import Offender


@pytest.fixture
def params():
    return ValidateParams.model_validate(
        {
            "min_rows": {"train": 1, "val": 1, "test": 1},
            "min_share": 0.2,
            "near_duplicate": 0.995,
            "label_issues": {"folds": 3},
            "seed": 0,
        }
    )


def test_small_images_have_a_column_a_pixel_over_all_splits(blobs):
    data = blobs()

    frame = pixels_frame(data.tables, data.schema)

    assert list(frame.columns[:3]) == ["item", "pixel_00", "pixel_01"]
    assert frame.shape == (150, 17)
    assert frame["item"].iloc[[0, 90, 149]].tolist() == ["train row 0", "val row 0", "test row 29"]
    assert frame["pixel_15"].iloc[149] == data.tables["test"].images[29, 0, 3, 3]


def test_large_images_have_the_extremes_of_blocks_that_cover_every_pixel(blobs):
    data = blobs(shape=(3, 16, 20), dtype="float32")
    images = data.tables["val"].images.copy()
    images[2, 1, 5, 6] = np.nan
    images[3, 2, 15, 19] = 9.0
    table = data.tables["val"]
    data = data.replaced("val", Table(table.rows, table.labels, images))

    frame = pixels_frame(data.tables, data.schema)

    assert frame.shape == (150, 1 + 2 * BLOCKS)
    assert frame.columns[1] == "pixels_000_019_low"
    assert frame.columns[-1] == "pixels_940_959_high"
    broken = frame.set_index("item").isna()
    assert broken.any(axis=1).pipe(lambda s: s.index[s]).tolist() == ["val row 2"]
    assert broken.sum(axis=1).max() == 2
    assert frame["pixels_940_959_high"].max() == 9.0
    assert frame.filter(like="_low").min().min() == data.tables["val"].images[
        np.isfinite(images).reshape(30, -1).all(axis=1)
    ].min().clip(max=0.0)


def test_statistics_are_those_of_the_image_and_absent_where_its_values_are_broken(blobs, params):
    data = blobs(dtype="float32").with_value("train", 5, np.nan)

    frame = rows_frame(examine(data.tables, data.schema, params), "train", [])

    image = data.tables["train"].images[0].astype(np.float64)
    assert frame["image_mean"][0] == pytest.approx(image.mean())
    assert frame["image_std"][0] == pytest.approx(image.std())
    assert np.isnan(frame["image_mean"][5])
    assert frame["missing_values"].sum() == 1


def test_classes_are_counted_without_the_train_rows_set_aside(blobs, params):
    data = blobs()
    aside = [Offender("train", p, "", "", "label_issue", "") for p in range(0, 60, 3)]
    listed = Offender("val", 0, "", "", "exact_duplicate", "")

    frame = classes_frame(examine(data.tables, data.schema, params), [*aside, listed])

    assert frame["train"].tolist() == [10, 30, 30]
    assert frame["val"].tolist() == [10, 10, 10]
    assert frame["share"].tolist() == pytest.approx([10 * 3 / 70, 30 * 3 / 70, 30 * 3 / 70])

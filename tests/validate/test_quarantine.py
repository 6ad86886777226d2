"""What is set aside, why, and how training reads it."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.core.tables import QUARANTINE, read_quarantine, read_train
from tasks.validate.examine import examine
from tasks.validate.params import ValidateParams
from tasks.validate.quarantine import quarantine, write_quarantine

NUDGE = np.eye(4, dtype=int)[None, None]


@pytest.fixture
def set_aside():
    """Offenders of data, as (split, position, reason, detail)."""

    def run(data, max_share=0.05):
        params = ValidateParams.model_validate(
            {
                "min_rows": {"train": 1, "val": 1, "test": 1},
                "min_share": 0.2,
                "near_duplicate": 0.995,
                "label_issues": {"folds": 3},
                "seed": 0,
            }
        )
        return quarantine(examine(data.tables, data.schema, params), max_share)

    return run


def _lines(offenders):
    return [(o.split, o.position, o.reason) for o in offenders]


def test_clean_data_sets_nothing_aside(blobs, set_aside):
    assert set_aside(blobs()) == []


def test_the_later_exact_copy_in_train_is_set_aside_and_names_the_first(blobs, set_aside):
    data = blobs()
    data = data.with_rows("train", data.tables["train"].images[4:5], [1])

    (offender,) = set_aside(data)

    assert _lines([offender]) == [("train", 90, "exact_duplicate")]
    assert offender.row == data.tables["train"].rows[4]
    assert offender.label == "elm"
    assert offender.detail == "the same image is at position 4"


def test_both_train_rows_of_an_image_under_two_labels_are_set_aside(blobs, set_aside):
    data = blobs()
    data = data.with_rows("train", data.tables["train"].images[4:5], [2])

    offenders = set_aside(data)

    assert _lines(offenders) == [
        ("train", 4, "conflicting_label"),
        ("train", 90, "conflicting_label"),
    ]
    assert [o.label for o in offenders] == ["elm", "oak"]
    assert offenders[0].detail == "the same image is labelled 'elm' and 'oak'"


def test_a_train_row_near_a_test_row_is_set_aside_and_the_test_row_is_not_listed(blobs, set_aside):
    data = blobs()
    planted = (data.tables["test"].images[5:6].astype(int) + NUDGE).clip(0, 255)

    (offender,) = set_aside(data.with_rows("train", planted, [2]))

    assert _lines([offender]) == [("train", 90, "near_duplicate")]
    assert offender.detail.endswith("to test position 5")


def test_a_val_row_near_a_test_row_is_listed(blobs, set_aside):
    data = blobs()
    planted = (data.tables["test"].images[5:6].astype(int) + NUDGE).clip(0, 255)

    assert _lines(set_aside(data.with_rows("val", planted, [2]))) == [("val", 30, "near_duplicate")]


def test_near_copies_within_train_are_not_set_aside(blobs, set_aside):
    data = blobs()
    planted = (data.tables["train"].images[5:6].astype(int) + NUDGE).clip(0, 255)

    assert set_aside(data.with_rows("train", planted, [2])) == []


def test_a_wrong_label_in_train_is_set_aside_with_the_class_it_looks_like(blobs, set_aside):
    data = blobs()
    labels = data.tables["train"].labels.copy()
    labels[6] = 2  # an ash

    (offender,) = set_aside(data.with_labels("train", labels))

    assert _lines([offender]) == [("train", 6, "label_issue")]
    assert offender.label == "oak"
    assert offender.detail.startswith("looks like 'ash' (0.")


def test_more_label_issues_than_allowed_set_nothing_aside(blobs, set_aside):
    data = blobs()
    labels = data.tables["train"].labels.copy()
    labels[:3] = (labels[:3] + 1) % 3

    assert len(set_aside(data.with_labels("train", labels), max_share=0.04)) == 3
    assert set_aside(data.with_labels("train", labels), max_share=0.03) == []


def test_rows_that_cannot_be_used_are_listed_in_every_split(blobs, set_aside):
    data = blobs(dtype="float32")
    data = data.with_value("train", 8, np.nan).with_value("val", 2, 1.5)
    labels = data.tables["test"].labels.copy()
    labels[4] = 7

    offenders = set_aside(data.with_labels("test", labels))

    assert [(*line, o.detail) for line, o in zip(_lines(offenders), offenders, strict=True)] == [
        ("train", 8, "missing_value", "1 values are NaN"),
        ("val", 2, "out_of_range", "1 values outside 0 to 1"),
        ("test", 4, "unknown_label", "classes are 0 to 2"),
    ]
    assert offenders[2].label == "7"


def test_a_row_with_several_faults_has_one_line(blobs, set_aside):
    data = blobs()
    twice = np.repeat(data.tables["test"].images[5:6].astype(int) + NUDGE, 2, axis=0).clip(0, 255)

    offenders = set_aside(data.with_rows("train", twice, [2, 0]))

    assert _lines(offenders) == [
        ("train", 90, "conflicting_label"),
        ("train", 91, "conflicting_label"),
    ]


def test_training_reads_the_table_without_the_rows_set_aside(blobs, set_aside, tmp_path):
    data = blobs()
    copy = data.tables["train"].images[4:5]
    data = data.with_rows("train", copy, [1]).with_rows("val", data.tables["val"].images[:1], [0])
    data.write(tmp_path)

    write_quarantine(tmp_path / "quarantine.parquet", set_aside(data))

    assert read_quarantine(tmp_path / "quarantine.parquet")["split"] == ["train", "val"]
    kept = read_train(data.schema, tmp_path)
    assert kept.rows.tolist() == data.tables["train"].rows[:90].tolist()


def test_an_empty_quarantine_is_a_file_with_the_same_columns(tmp_path):
    write_quarantine(tmp_path / "quarantine.parquet", [])

    columns = read_quarantine(tmp_path / "quarantine.parquet")

    assert columns == {name: [] for name in QUARANTINE.names}

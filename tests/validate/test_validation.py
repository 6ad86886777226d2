"""Expectations on whole data: what is critical, what is a warning, and what is said."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tasks.core.errors import GateError
from tasks.core.tables import SPLITS, Table
from tasks.validate.checkpoint import _outcomes
from tasks.validate.report import stop_on_critical
from tasks.validate.suites import EACH
from tests.validate.conftest import row_ids


def _failed(validation, severity):
    return {
        (o.split, o.name) for o in validation.outcomes if not o.success and o.severity == severity
    }


def _line(validation):
    with pytest.raises(GateError) as raised:
        stop_on_critical(validation.outcomes, "docs")
    return str(raised.value)


def test_clean_data_passes_everything(blobs, judge):
    validation = judge(blobs())

    assert _failed(validation, "critical") == _failed(validation, "warning") == set()
    assert validation.report["passed"] is True
    assert validation.report["counts"] == {
        "expectations": len(validation.outcomes),
        "failed_critical": 0,
        "failed_warning": 0,
    }
    assert {o.split for o in validation.outcomes} == {"train", "val", "test", "all"}
    stop_on_critical(validation.outcomes, "docs")


def test_a_nan_pixel_stops_and_is_named_with_split_and_row(blobs, judge):
    validation = judge(blobs(dtype="float32").with_value("val", 7, np.nan))

    assert _failed(validation, "critical") == {("val", "missing_values"), ("all", "pixel_not_null")}
    assert _line(validation) == (
        "validate: val: missing_values fails, 1 of 30: row 7 (missing_values 1) (1 more); "
        "mend the raw rows that the quarantine names; see docs"
    )
    pixel = next(o for o in validation.outcomes if o.name == "pixel_not_null")
    assert pixel.observed.startswith("1 of 16 expectations fail: 1 of 150: val row 7 (pixel_00")


def test_values_out_of_range_stop_and_are_named(blobs, judge):
    data = blobs(dtype="float32").with_value("train", 3, -0.25).with_value("test", 9, np.inf)

    validation = judge(data)

    assert _failed(validation, "critical") == {
        ("train", "value_range"),
        ("test", "value_range"),
        ("all", "pixel_range"),
    }
    pixel = next(o for o in validation.outcomes if o.name == "pixel_range")
    assert "train row 3 (pixel_00 -0.25), test row 9 (pixel_00 inf)" in pixel.observed


def test_images_of_three_channels_are_judged_by_blocks_of_pixels(blobs, judge):
    data = blobs(shape=(3, 16, 20), dtype="float32").with_value("test", 1, 1.5)

    validation = judge(data)

    assert _failed(validation, "critical") == {("test", "value_range"), ("all", "pixel_range")}
    pixel = next(o for o in validation.outcomes if o.name == "pixel_range")
    assert pixel.observed == (
        "1 of 96 expectations fail: 1 of 150: test row 1 (pixels_000_019_high 1.5)"
    )


def test_a_class_missing_from_train_stops_and_from_val_warns(blobs, judge):
    data = blobs()
    for split in ("train", "val"):
        table = data.tables[split]
        data = data.replaced(split, table.take(table.labels != 1))

    validation = judge(data, min_rows={"train": 60, "val": 20, "test": 20})

    assert _failed(validation, "critical") == {("train", "classes_present")}
    assert ("val", "classes_present") in _failed(validation, "warning")
    assert "1 of 3: class 'elm' (train 0)" in _line(validation)


def test_too_few_rows_stop_with_the_number_and_the_key_to_change(blobs, judge):
    validation = judge(blobs(), min_rows={"train": 60, "val": 31, "test": 20})

    assert _failed(validation, "critical") == {("val", "row_count")}
    assert _line(validation) == (
        "validate: val: row_count fails, 30; add raw rows or lower validate.min_rows.val; see docs"
    )


def test_splits_of_one_row_stop_without_a_crash(blobs, judge):
    data = blobs()
    for split in ("train", "val"):
        data = data.replaced(split, data.tables[split].take(np.array([0])))

    validation = judge(data)

    assert {("train", "row_count"), ("val", "row_count")} <= _failed(validation, "critical")
    assert not any("could not be computed" in o.observed for o in validation.outcomes)
    assert validation.report["label_issues"]["unchecked_classes"] == ["ash", "elm", "oak"]


def test_a_quarantine_that_leaves_too_few_train_rows_stops(blobs, judge):
    data = blobs()
    data = data.with_rows("train", data.tables["train"].images[:1], [1])

    validation = judge(data, min_rows={"train": 90, "val": 20, "test": 20})

    assert _failed(validation, "critical") == {("train", "rows_kept")}
    assert _line(validation).startswith("validate: train: rows_kept fails, 89;")


def test_labels_that_are_no_class_stop(blobs, judge):
    data = blobs()
    labels = data.tables["test"].labels.copy()
    labels[11] = 3

    validation = judge(data.with_labels("test", labels))

    assert _failed(validation, "critical") == {("test", "labels")}
    assert "row 11 (label 3)" in _line(validation)


def test_one_image_in_two_splits_stops(blobs, judge):
    data = blobs()

    validation = judge(data.with_rows("train", data.tables["test"].images[:1], [0]))

    assert _failed(validation, "critical") == {
        ("train", "exact_copy_in_other_split"),
        ("test", "exact_copy_in_other_split"),
    }
    assert validation.report["duplicates"]["exact_across_splits"] == {
        "train": 1,
        "val": 0,
        "test": 1,
    }


def test_row_ids_must_be_digests_of_one_image_each(blobs, judge):
    data = blobs()
    table = data.tables["test"]
    rows = table.rows.copy()
    rows[0], rows[1] = "row-1", rows[2]

    validation = judge(data.replaced("test", Table(rows, table.labels, table.images)))

    assert _failed(validation, "critical") == {("test", "row_id_form"), ("test", "row_id_content")}


def test_copies_conflicts_and_near_copies_warn_and_do_not_stop(blobs, judge):
    data = blobs()
    train, test = data.tables["train"].images, data.tables["test"].images
    nudged = (test[5:6].astype(int) + np.eye(4, dtype=int)).clip(0, 255)
    data = data.with_rows("train", np.concatenate([train[:1], train[3:4], nudged]), [0, 1, 2])

    validation = judge(data)

    assert _failed(validation, "critical") == set()
    assert _failed(validation, "warning") == {
        ("train", "exact_copies"),
        ("train", "conflicting_labels"),
        ("train", "near_copies_of_other_split"),
    }
    assert validation.report["passed"] is True
    assert validation.report["set_aside"] == {
        "train": {"conflicting_label": 2, "exact_duplicate": 1, "near_duplicate": 1}
    }
    assert validation.report["duplicates"]["near"]["pairs"]["train-test"] == 1


def test_a_rare_class_warns_by_name(blobs, judge):
    data = blobs()
    table = data.tables["train"]
    rare = np.flatnonzero(table.labels == 2)[4:]
    data = data.replaced("train", table.take(np.setdiff1d(np.arange(90), rare)))

    validation = judge(data)

    assert _failed(validation, "critical") == set()
    assert ("train", "class_balance") in _failed(validation, "warning")
    balance = next(o for o in validation.outcomes if o.name == "class_balance")
    assert balance.observed == "1 of 3: class 'oak' (share 0.1875)"


def test_brighter_flatter_and_constant_images_warn(blobs, judge):
    data = blobs(dtype="float32")
    table = data.tables["test"]
    images = 0.2 * table.images + 0.8
    images[4] = 0.9
    data = data.replaced("test", Table(table.rows, table.labels, images.astype(np.float32)))

    validation = judge(data)

    assert _failed(validation, "critical") == set()
    assert _failed(validation, "warning") == {
        ("test", "image_mean"),
        ("test", "image_std"),
        ("test", "constant_images"),
    }


def test_the_share_of_label_issues_is_of_the_rows_that_were_judged(blobs, judge):
    """Of 30 rows and their copies, which nobody judges, three are labelled wrongly."""
    data = blobs()
    train = data.tables["train"]
    labels, first = train.labels.copy(), np.arange(90) % 30
    labels[:3] = (labels[:3] + 1) % 3
    images = train.images[first]
    copied = Table(row_ids(images), labels[first], images)

    validation = judge(replace(data, tables={**data.tables, "train": copied}))

    assert validation.report["label_issues"]["checked"] == 30
    assert validation.report["label_issues"]["set_aside"] == 0
    assert ("train", "label_issues") in _failed(validation, "warning")
    (told,) = (
        one
        for one in validation.report["expectations"]
        if (one["split"], one["name"]) == ("train", "label_issues")
    )
    assert told["observed"].startswith("3 of 30: ")


def test_an_expectation_that_could_not_be_computed_is_met_by_no_split() -> None:
    asked = SimpleNamespace(
        meta={"split": EACH, "name": "nulls", "why": "", "remedy": ""},
        kwargs={"column": "nulls"},
        severity="critical",
    )
    told = {"exception_message": "boom"}
    found = SimpleNamespace(expectation_config=asked, result={}, success=False, exception_info=told)
    outcomes = _outcomes(found)
    assert [one.success for one in outcomes] == [False] * len(SPLITS)
    assert all("could not be computed: boom" in one.observed for one in outcomes)


def test_more_label_issues_than_allowed_warn_name_them_and_set_none_aside(blobs, judge):
    data = blobs()
    labels = data.tables["train"].labels.copy()
    labels[:9] = (labels[:9] + 1) % 3

    validation = judge(data.with_labels("train", labels))

    assert _failed(validation, "warning") == {("train", "label_issues")}
    assert validation.report["label_issues"]["set_aside"] == 0
    assert validation.report["set_aside"] == {"train": {}}
    worst = validation.report["label_issues"]["worst"]
    assert sorted(w["position"] for w in worst) == list(range(9))
    assert {(w["label"], w["suggested"]) for w in worst} == {
        ("elm", "ash"),
        ("oak", "elm"),
        ("ash", "oak"),
    }

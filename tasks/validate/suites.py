"""The expectations, by suite: files, one per split, classes, pixels.

Each carries a name, a split, a severity, why it is asked for and what to do when it fails. Critical
ones stop the run: training or measuring would go wrong. Warnings are for people to judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import great_expectations.expectations as gxe
import pandas as pd

from tasks.core.tables import SPLITS, Fingerprint, Schema
from tasks.validate.examine import COLUMNS, column_types
from tasks.validate.params import ValidateParams

Severity = Literal["critical", "warning"]
ALL = "all"  # of the tables at once
EACH = "each"  # a line of the frame is a split
DRIFT = 0.25  # standard deviations of the data that a split's mean may be off
CONTRAST = (0.75, 1.25)  # of train's mean standard deviation of an image


@dataclass(frozen=True)
class Asked:
    """What an expectation is called, and what it means to people."""

    name: str
    split: str
    severity: Severity
    why: str
    remedy: str

    def of(self, kind: Any, **arguments: Any) -> Any:
        """The expectation of this `kind`."""
        meta = {"name": self.name, "split": self.split, "why": self.why, "remedy": self.remedy}
        return kind(severity=self.severity, notes=self.why, meta=meta, **arguments)

    def none(self, column: str, **arguments: Any) -> Any:
        """No line of the frame has anything but 0 in `column`."""
        return self.of(gxe.ExpectColumnValuesToBeInSet, column=column, value_set=[0], **arguments)


def files_suite(schema: Schema) -> list[Any]:
    """Columns, types, nulls, and that the tables are the ones of the fingerprint."""
    again = "run ingest again"
    columns = Asked("columns", EACH, "critical", "a table has these columns, in order", again)
    types = Asked("types", EACH, "critical", "columns have the types of the data's schema", again)
    filled = Asked("not_empty", EACH, "critical", "a table has rows", "add raw rows")
    nulls = Asked("nulls", EACH, "critical", "no id, label or pixel is null", again)
    named = Asked(
        "fingerprint",
        EACH,
        "critical",
        "the file is the one that was fingerprinted",
        "a table was changed by hand; run ingest again, or change the raw data",
    )
    typed = zip(COLUMNS, column_types(schema), strict=True)
    return [
        columns.of(
            gxe.ExpectColumnValuesToBeInSet, column="columns", value_set=[", ".join(COLUMNS)]
        ),
        *(
            types.of(gxe.ExpectColumnValuesToBeInSet, column=f"{column}_type", value_set=[kind])
            for column, kind in typed
        ),
        filled.of(gxe.ExpectColumnValuesToBeBetween, column="rows", min_value=1),
        nulls.none("nulls"),
        named.of(gxe.ExpectColumnValuesToBeInSet, column="fingerprinted", value_set=[True]),
    ]


def rows_suite(
    split: str, train: pd.DataFrame, fingerprint: Fingerprint, params: ValidateParams
) -> list[Any]:
    """What holds for the rows of one split. `train` is train's frame: images of val and test are
    compared with its images."""
    minimum = getattr(params.min_rows, split)
    mend = "mend the raw rows that the quarantine names"
    rows = Asked(
        "row_count",
        split,
        "critical",
        f"{split} has at least {minimum} rows",
        f"add raw rows or lower validate.min_rows.{split}",
    )
    missing = Asked("missing_values", split, "critical", "no pixel of a row is NaN", mend)
    ranges = Asked("value_range", split, "critical", "pixels lie in the declared range", mend)
    labels = Asked("labels", split, "critical", "labels are indices of classes", mend)
    form = Asked(
        "row_id_form", split, "critical", "row ids are SHA-256 digests", "run ingest again"
    )
    content = Asked(
        "row_id_content",
        split,
        "critical",
        "one row id is one image, and one only",
        "run ingest again",
    )
    leak = Asked(
        "exact_copy_in_other_split",
        split,
        "critical",
        "no image is in two splits",
        "run ingest again; it puts equal images into one split",
    )
    return [
        rows.of(gxe.ExpectTableRowCountToBeBetween, min_value=minimum),
        missing.none("missing_values"),
        ranges.none("values_out_of_range"),
        labels.of(
            gxe.ExpectColumnValuesToBeBetween,
            column="label",
            min_value=0,
            max_value=len(fingerprint.data.classes) - 1,
        ),
        form.of(gxe.ExpectColumnValuesToMatchRegex, column="row", regex="^[0-9a-f]{64}$"),
        content.none("misnamed"),
        leak.none("copy_in_other_split"),
        *_duplicates(split),
        *_images(split, train, fingerprint),
        *(_train(params) if split == "train" else []),
    ]


def classes_suite(params: ValidateParams) -> list[Any]:
    """Every class occurs, and none is rare in train."""
    share = Asked(
        "class_balance",
        "train",
        "warning",
        f"a class has at least {params.min_share:g} of the mean class size",
        "add rows of these classes",
    )
    expectations = [
        share.of(gxe.ExpectColumnValuesToBeBetween, column="share", min_value=params.min_share)
    ]
    beside = ", the quarantine set aside"
    for split in SPLITS:
        present = Asked(
            "classes_present",
            split,
            "critical" if split == "train" else "warning",
            f"every class occurs in {split}{beside if split == 'train' else ''}",
            "add rows of these classes, or remove the classes from the raw data",
        )
        expectations.append(
            present.of(gxe.ExpectColumnValuesToBeBetween, column=split, min_value=1)
        )
    return expectations


def pixels_suite(frame: pd.DataFrame, schema: Schema) -> list[Any]:
    """Each pixel (or block of pixels) of all splits: never null, always in range."""
    mend = "mend the raw rows that the quarantine names"
    present = Asked("pixel_not_null", ALL, "critical", "no pixel is null or NaN", mend)
    ranges = Asked("pixel_range", ALL, "critical", "every pixel is in the declared range", mend)
    low, high = schema.range
    columns = [c for c in frame.columns if c != "item"]
    return [
        *(
            present.of(gxe.ExpectColumnValuesToNotBeNull, column=c)
            for c in columns
            if not c.endswith("_high")
        ),
        *(
            ranges.of(gxe.ExpectColumnValuesToBeBetween, column=c, min_value=low, max_value=high)
            for c in columns
        ),
    ]


def _duplicates(split: str) -> list[Any]:
    kept = (
        "nothing to do if the quarantine agrees with you"
        if split == "train"
        else "remove them from the raw data, or accept that they count twice"
    )
    within = Asked("exact_copies", split, "warning", "an image occurs once", kept)
    labels = Asked(
        "conflicting_labels",
        split,
        "warning",
        "an image has one label",
        "correct the labels in the raw data",
    )
    near = Asked(
        "near_copies_of_other_split",
        split,
        "warning",
        "no image is nearly one of a more protected split (test, then val)",
        kept,
    )
    expectations = [within.none("copy_in_this_split"), labels.none("conflicting_label")]
    return (
        expectations if split == "test" else [*expectations, near.none("near_copy_in_other_split")]
    )


def _images(split: str, train: pd.DataFrame, fingerprint: Fingerprint) -> list[Any]:
    look = "look at the images of this split"
    flat = Asked("constant_images", split, "warning", "an image has more than one value", look)
    mean = Asked(
        "image_mean",
        split,
        "warning",
        f"the mean is within {DRIFT:g} standard deviations of the data's",
        look,
    )
    contrast = Asked(
        "image_std",
        split,
        "warning",
        "the contrast of an image is on average that of train's",
        look,
    )
    center, spread = fingerprint.mean, DRIFT * fingerprint.std
    usual = float(train["image_std"].mean())
    expectations = [
        flat.none("constant_image"),
        mean.of(
            gxe.ExpectColumnMeanToBeBetween,
            column="image_mean",
            min_value=center - spread,
            max_value=center + spread,
        ),
    ]
    if split != "train" and usual == usual:  # NaN: train has no usable image, and says so
        expectations.append(
            contrast.of(
                gxe.ExpectColumnMeanToBeBetween,
                column="image_std",
                min_value=CONTRAST[0] * usual,
                max_value=CONTRAST[1] * usual,
            )
        )
    return expectations


def _train(params: ValidateParams) -> list[Any]:
    minimum, share = params.min_rows.train, params.label_issues.max_share
    kept = Asked(
        "rows_kept",
        "train",
        "critical",
        f"at least {minimum} rows remain for training beside the quarantine",
        "mend the rows that the quarantine names, or lower validate.min_rows.train",
    )
    issues = Asked(
        "label_issues",
        "train",
        "warning",
        f"at most {share:g} of the labels are contradicted by the rest of the rows",
        "look at the rows named in the report; none of them was set aside",
    )
    return [
        kept.of(gxe.ExpectColumnSumToBeBetween, column="kept", min_value=minimum),
        issues.none("label_issue", mostly=1 - share),
    ]

"""The data frames that Great Expectations sees: one of the files, one per split with a line a row,
one of the classes, one of the pixels.

Every frame has a column `item` that names its line for people: an unexpected value is found by it.
Images of more than `PIXELS_ALONE` values are not given a column a pixel but `BLOCKS` pairs of
columns, the lowest and highest value of a block of neighbouring pixels (NaN if any is NaN): as
strict, and the cost of validation no longer grows with the image.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.core.tables import SPLITS, Schema, Table
from tasks.validate.duplicates import Copies, Near
from tasks.validate.examine import COLUMNS, Examination, Faults, TableFile
from tasks.validate.quarantine import Offender

PIXELS_ALONE = 128
BLOCKS = 48


def files_frame(files: Mapping[str, TableFile]) -> pd.DataFrame:
    """One line a table: its columns, their types, nulls, and whether the fingerprint names it."""
    lines = []
    for split, file in files.items():
        types = dict(zip(file.columns, file.types, strict=True))
        lines.append(
            {
                "item": split,
                "columns": ", ".join(file.columns),
                **{f"{column}_type": types.get(column, "none") for column in COLUMNS},
                "rows": file.rows,
                "nulls": file.nulls,
                "fingerprinted": file.fingerprinted,
            }
        )
    return pd.DataFrame(lines)


def rows_frame(found: Examination, split: str, offenders: list[Offender]) -> pd.DataFrame:
    """One line a row of `split`: id, label, statistics of its image, and what was found."""
    table, faults = found.tables[split], found.faults[split]
    copies, near = found.copies[split], found.near[split]
    aside = {o.position for o in offenders if o.split == split}
    positions = range(len(table))
    statistics = _statistics(table, faults)
    return pd.DataFrame(
        {
            "item": [f"row {position}" for position in positions],
            "row": table.rows.astype(object),
            "label": table.labels,
            **statistics,
            "missing_values": faults.missing,
            "values_out_of_range": faults.out_of_range,
            "constant_image": faults.constant.astype(int),
            **_copied(copies, near),
            "label_issue": _suspected(found, split),
            "kept": [int(position not in aside) for position in positions],
        }
    )


def classes_frame(found: Examination, offenders: list[Offender]) -> pd.DataFrame:
    """One line a class: rows in each split, without train's quarantine, and `share`: train's rows
    against the mean class."""
    count = len(found.schema.classes)
    counts = {s: class_counts(found.tables[s], count) for s in SPLITS}
    aside = np.array([o.position for o in offenders if o.split == "train"], dtype=np.int64)
    counts["train"] = counts["train"] - class_counts(found.tables["train"].take(aside), count)
    mean = counts["train"].sum() / count
    return pd.DataFrame(
        {
            "item": [f"class {name!r}" for name in found.schema.classes],
            **counts,
            "share": counts["train"] / (mean or 1.0),
        }
    )


def class_counts(table: Table, classes: int) -> NDArray[np.int64]:
    """Rows per class; labels that are no class do not count."""
    known = (table.labels >= 0) & (table.labels < classes)
    return np.bincount(table.labels[known], minlength=classes)


def pixels_frame(tables: Mapping[str, Table], schema: Schema) -> pd.DataFrame:
    """One line a row of all splits; see the module's head for the columns."""
    values = int(np.prod(schema.shape))
    flat = np.concatenate([t.images.reshape(len(t), values) for t in tables.values()])
    items = [f"{split} row {i}" for split, table in tables.items() for i in range(len(table))]
    columns: dict[str, NDArray[np.generic]] = {}
    if values <= PIXELS_ALONE:
        width = len(str(values - 1))
        columns = {f"pixel_{i:0{width}d}": flat[:, i] for i in range(values)}
    else:
        width = len(str(values - 1))
        for block in np.array_split(np.arange(values), BLOCKS):
            name = f"pixels_{block[0]:0{width}d}_{block[-1]:0{width}d}"
            part = flat[:, block[0] : block[-1] + 1]
            columns[f"{name}_low"] = part.min(axis=1)
            columns[f"{name}_high"] = part.max(axis=1)
    return pd.DataFrame({"item": items, **columns})


def _statistics(table: Table, faults: Faults) -> dict[str, NDArray[np.float64]]:
    """Mean and standard deviation of each image; NaN where its values cannot be counted on."""
    values = table.images.reshape(len(table), int(np.prod(table.images.shape[1:])))
    usable = (faults.missing == 0) & (faults.out_of_range == 0)
    mean, std = np.full(len(table), np.nan), np.full(len(table), np.nan)
    mean[usable] = values[usable].mean(axis=1, dtype=np.float64)
    std[usable] = values[usable].std(axis=1, dtype=np.float64)
    return {"image_mean": mean, "image_std": std}


def _suspected(found: Examination, split: str) -> NDArray[np.float64]:
    """1 where a label is contradicted, 0 where not, NaN (no value) where nobody judged it."""
    if split != "train":
        return np.zeros(len(found.tables[split]))
    marks = np.full(len(found.tables[split]), np.nan)
    marks[found.labels.judged] = 0
    marks[found.labels.position] = 1
    return marks


def _copied(copies: Copies, near: Near) -> dict[str, NDArray[np.int64]]:
    return {
        "misnamed": copies.misnamed.astype(int),
        "copy_in_other_split": (copies.elsewhere != "").astype(int),
        "copy_in_this_split": copies.later.astype(int),
        "conflicting_label": copies.conflicting.astype(int),
        "near_copy_in_other_split": (near.similarity > 0).astype(int),
    }

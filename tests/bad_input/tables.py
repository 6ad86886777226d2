"""Parquets of images that nobody can learn from: found before `data/raw` is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad_input.case import Case, params

Harm = Callable[[Path], object]


def table(images: list[object], labels: list[object]) -> Harm:
    """`rows.parquet` of images and labels."""

    def arrange(root: Path) -> None:
        pq.write_table(pa.table({"image": images, "label": labels}), root / "rows.parquet")
        params({"data.source": "parquet", "data.path": "rows.parquet"})(root)

    return arrange


IMAGES: list[object] = [[[i / 100, 0.5], [0.25, 1.0]] for i in range(12)]
LABELS: list[object] = ["a", "b"] * 6


def _cut_table(root: Path) -> None:
    table(IMAGES, LABELS)(root)
    os.truncate(root / "rows.parquet", 300)


def _no_label(root: Path) -> None:
    table(IMAGES, LABELS)(root)
    pq.write_table(pa.table({"image": IMAGES}), root / "rows.parquet")


def _with(image: object) -> Harm:
    """Row 3 is `image`."""
    return table([*IMAGES[:3], image, *IMAGES[4:]], LABELS)


WRITE = "write lists H×W or C×H×W, or encoded bytes"
TABLES = (
    Case(
        "a Parquet that is not there",
        params({"data.source": "parquet", "data.path": "rows.parquet"}),
        ("rows.parquet: no such file", "set data.path to a Parquet file"),
    ),
    Case(
        "a Parquet that is cut off",
        _cut_table,
        ("rows.parquet: not a readable Parquet file", "write it again"),
    ),
    Case(
        "a Parquet without labels",
        _no_label,
        ("rows.parquet: has no column 'label'", "it needs image and label"),
    ),
    Case(
        "a Parquet without rows",
        table([], []),
        ("rows.parquet: holds no images", "add some rows"),
    ),
    Case(
        "a pixel that is NaN",
        _with([[0.1, float("nan")], [0.1, 0.1]]),
        ("rows.parquet: row 3 has NaN or infinite pixels (1 in all)", "mend or remove them"),
    ),
    Case(
        "a pixel that is infinite",
        _with([[0.1, float("inf")], [0.1, 0.1]]),
        ("rows.parquet: row 3 has NaN or infinite pixels (1 in all)", "mend or remove them"),
    ),
    Case(
        "a pixel that float32 cannot hold",
        _with([[0.1, 1e300], [0.1, 0.1]]),
        ("rows.parquet: row 3 has NaN or infinite pixels (1 in all)", "mend or remove them"),
    ),
    Case(
        "a row without an image",
        _with(None),
        ("rows.parquet: row 3 is not an image of numbers", WRITE),
    ),
    Case(
        "an image without pixels",
        _with([[], []]),
        ("rows.parquet: row 3 is not an image of numbers", WRITE),
    ),
    Case(
        "a ragged image",
        _with([[0.1, 0.2], [0.3]]),
        ("rows.parquet: row 3 is ragged", "every line needs the same length"),
    ),
    Case(
        "an image of another size",
        _with([[0.1, 0.2]]),
        ("rows.parquet: row 3 is 1×1×2", "row 0 is 1×2×2", "bring all images to one size"),
    ),
    Case(
        "text in the image column",
        table([f"{i}.png" for i in range(12)], LABELS),
        ("rows.parquet: row 0 is not an image of numbers", WRITE),
    ),
    Case(
        "truth values in the image column",
        table([[[True, False]]] * 12, LABELS),
        ("rows.parquet: row 0 is not an image of numbers", WRITE),
    ),
    Case(
        "bytes in the image column that are no image",
        table([bytes([i]) * 20 for i in range(12)], LABELS),
        ("rows.parquet: row 0: cannot be decoded as an image", "mend or remove it"),
    ),
    Case(
        "a label that is missing",
        table(IMAGES, [*LABELS[:3], None, *LABELS[4:]]),
        ("rows.parquet: row 3 has label None", "labels are text or integers"),
    ),
    Case(
        "a label that is a fraction",
        table(IMAGES, [0.5, 1.5] * 6),
        ("rows.parquet: row 0 has label 0.5", "labels are text or integers"),
    ),
    Case(
        "a label out of range",
        table(IMAGES, [0, 1, 0, -1] * 3),
        ("rows.parquet: row 3 has label -1", "labels count from 0; label or remove it"),
    ),
    Case(
        "a label without a letter",
        table(IMAGES, [*LABELS[:3], "", *LABELS[4:]]),
        ("rows.parquet: row 3 has label ''", "labels are text or integers"),
    ),
    Case(
        "the same row under two labels",
        _with(IMAGES[0]),
        ("rows.parquet: row 0 ('a') and row 3 ('b') are the same image", "(1 in all)", "correct"),
    ),
)
